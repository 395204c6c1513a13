//! Files and folders that are replaced in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tonic::Status;

pub fn failed(error: io::Error) -> Status {
    Status::internal(format!("Service internal error: {error}"))
}

/// Replaces a file: it has the old bytes or the new ones, whatever happens.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

/// The names of what a folder holds, sorted; none where it is not there.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}
