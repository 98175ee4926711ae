//! The committed model must be what the installed botocore gives.

use std::process::Command;

#[test]
fn committed_files_equal_a_regeneration() {
    let locate = "import botocore, os; assert botocore.__version__ == '1.43.11', botocore.__version__; \
                  print(os.path.join(os.path.dirname(botocore.__file__), 'data/lambda/2015-03-31/service-2.json.gz'))";
    let found = Command::new("python3").args(["-c", locate]).output();
    let path = match found {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        _ => {
            eprintln!("SKIPPED: botocore 1.43.11 is not installed for python3");
            return;
        }
    };
    super::run(&["--from".to_owned(), path, "--check".to_owned()]).unwrap();
}
