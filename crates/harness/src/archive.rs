//! Deployment packages for tests: zips made in memory from literals or from a folder.

use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A zip of the given files: name, Unix mode, content. Equal input gives equal bytes.
pub fn zip_files(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in files {
        let options =
            SimpleFileOptions::default().compression_method(CompressionMethod::Deflated).unix_permissions(*mode);
        archive.start_file(*name, options)?;
        archive.write_all(content)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// A zip of every regular file below `folder`, in the order of their names, with their modes.
pub fn zip_folder(folder: &Path) -> Result<Vec<u8>> {
    let mut files = Vec::new();
    collect(folder, String::new(), &mut files)?;
    let borrowed: Vec<_> =
        files.iter().map(|(name, mode, content)| (name.as_str(), *mode, content.as_slice())).collect();
    zip_files(&borrowed)
}

fn collect(folder: &Path, prefix: String, files: &mut Vec<(String, u32, Vec<u8>)>) -> Result<()> {
    let mut entries = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot list {}", folder.display()))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            collect(&entry.path(), format!("{name}/"), files)?;
        } else if metadata.is_file() {
            files.push((name, metadata.permissions().mode() & 0o777, std::fs::read(entry.path())?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::ZipArchive;

    #[test]
    fn a_folder_becomes_the_same_zip_as_its_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        std::fs::write(folder.path().join("lib/b.py"), "b = 1").unwrap();
        std::fs::write(folder.path().join("a.py"), "a = 1").unwrap();
        for file in ["a.py", "lib/b.py"] {
            std::fs::set_permissions(folder.path().join(file), PermissionsExt::from_mode(0o640)).unwrap();
        }
        let from_files = zip_files(&[("a.py", 0o640, b"a = 1"), ("lib/b.py", 0o640, b"b = 1")]).unwrap();
        assert_eq!(zip_folder(folder.path()).unwrap(), from_files);

        let mut archive = ZipArchive::new(Cursor::new(from_files)).unwrap();
        let entry = archive.by_name("lib/b.py").unwrap();
        assert_eq!(entry.unix_mode().unwrap() & 0o777, 0o640);
    }
}
