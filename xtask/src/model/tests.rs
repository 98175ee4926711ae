//! The committed model must be what the pinned AWS CLI (tests/requirements.txt) carries.

use std::process::Command;

#[test]
fn committed_files_equal_a_regeneration() {
    let python = std::env::var("FIRELET_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let locate = "import awscli.botocore as botocore, os; assert botocore.__version__ == '1.43.62', botocore.__version__; \
                  print(os.path.join(os.path.dirname(botocore.__file__), 'data/lambda/2015-03-31/service-2.json'))";
    let found = Command::new(&python).args(["-c", locate]).output();
    let path = match found {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        _ => {
            eprintln!("SKIPPED: the AWS CLI 1.46.2, with botocore 1.43.62 in it, is not installed for {python}");
            return;
        }
    };
    super::run(&["--from".to_owned(), path, "--check".to_owned()]).unwrap();
}
