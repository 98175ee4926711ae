//! Reading an archive whose bytes may be hostile: what its directory may cost, and whose fault an error is.

use std::cell::Cell;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use zip::{ExtraField, ZipArchive};

use crate::plan::ZipError;

/// How many bytes finding and parsing the central directory may read. 100,000 entries with long names need 17 MB;
/// an archive built to be parsed over and over, or with millions of entries, stops here.
const MAX_DIRECTORY_BYTES: u64 = 20 * 1024 * 1024;

/// Copies go through a buffer of this size.
const COPY_BYTES: usize = 64 * 1024;

/// An opened archive.
pub(crate) struct Archive<R: Read + Seek> {
    zip: ZipArchive<Source<R>>,
    meter: Rc<Meter>,
}

/// Why copying an entry out stopped.
pub(crate) enum CopyError {
    /// The archive's side.
    Zip(ZipError),
    /// The side that was written to.
    Write(io::Error),
}

impl<R: Read + Seek> Archive<R> {
    /// Finds and parses the central directory.
    pub(crate) fn open(reader: R) -> Result<Self, ZipError> {
        let meter = Rc::new(Meter { left: Cell::new(Some(MAX_DIRECTORY_BYTES)), broken: Cell::new(false) });
        let source = Source { inner: BufReader::new(reader), meter: Rc::clone(&meter) };
        match ZipArchive::new(source) {
            Ok(zip) => {
                meter.left.set(None);
                Ok(Self { zip, meter })
            }
            Err(_) if meter.left.get() == Some(0) => Err(ZipError::DirectoryTooLarge),
            Err(error) => Err(meter.blame(error)),
        }
    }

    /// The parsed central directory.
    pub(crate) fn directory(&self) -> &ZipArchive<impl Read + Seek + use<R>> {
        &self.zip
    }

    /// Whether bytes of the archive belong to two entries at once.
    pub(crate) fn has_overlaps(&mut self) -> Result<bool, ZipError> {
        self.zip.has_overlapping_entries().map_err(|error| self.meter.blame(error))
    }

    /// Inflates entry `index` into `sink`. An entry that is not exactly as long as the directory says is an error,
    /// and not a byte beyond the declared size is written. Returns the exact modification time, in seconds since 1970,
    /// where the archive carries one.
    pub(crate) fn copy_entry(&mut self, index: usize, sink: &mut impl io::Write) -> Result<Option<u64>, CopyError> {
        let Self { zip, meter } = self;
        let mut entry = zip.by_index(index).map_err(|error| CopyError::Zip(meter.blame(error)))?;
        let mut left = entry.size();
        let mut buffer = [0; COPY_BYTES];
        loop {
            let read = match entry.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(CopyError::Zip(meter.blame(error.into()))),
            };
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| CopyError::Zip(size_differs(&entry)))?;
            sink.write_all(&buffer[..read]).map_err(CopyError::Write)?;
        }
        if left > 0 {
            return Err(CopyError::Zip(size_differs(&entry)));
        }
        Ok(entry.extra_data_fields().find_map(|field| match field {
            ExtraField::ExtendedTimestamp(times) => times.mod_time().map(u64::from),
            _ => None,
        }))
    }

    /// The content of a small entry, at most `limit` bytes.
    pub(crate) fn read_small(&mut self, index: usize, limit: usize) -> Result<Option<Vec<u8>>, ZipError> {
        let declared = self.zip.by_index_data(index).map_err(|error| self.meter.blame(error))?.size();
        if declared > limit as u64 {
            return Ok(None);
        }
        let mut content = Vec::with_capacity(declared as usize);
        match self.copy_entry(index, &mut content) {
            Ok(_) => Ok(Some(content)),
            Err(CopyError::Zip(error)) => Err(error),
            Err(CopyError::Write(error)) => Err(ZipError::Io(error)),
        }
    }
}

fn size_differs<R: Read>(entry: &zip::read::ZipFile<'_, R>) -> ZipError {
    ZipError::SizeDiffers { name: String::from_utf8_lossy(entry.name_raw()).into_owned() }
}

/// What one reader may still read, and whether the reader itself (not what it yielded) failed.
struct Meter {
    left: Cell<Option<u64>>,
    broken: Cell<bool>,
}

impl Meter {
    /// Tells a disk that cannot be read from an archive that makes no sense.
    fn blame(&self, error: zip::result::ZipError) -> ZipError {
        match error {
            zip::result::ZipError::Io(source) if self.broken.get() => ZipError::Io(source),
            zip::result::ZipError::Io(source) => ZipError::Malformed { reason: source.to_string() },
            zip::result::ZipError::InvalidArchive(reason) => ZipError::Malformed { reason: reason.into_owned() },
            other => ZipError::Malformed { reason: other.to_string() },
        }
    }
}

/// The reader below the zip parser.
struct Source<R> {
    inner: BufReader<R>,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = match self.meter.left.get() {
            Some(0) if !buffer.is_empty() => return Err(io::Error::other("the central directory is too large")),
            Some(left) => buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            None => buffer.len(),
        };
        let read = self.inner.read(&mut buffer[..allowed]).inspect_err(|error| {
            self.meter.broken.set(error.kind() != io::ErrorKind::Interrupted);
        })?;
        if let Some(left) = self.meter.left.get() {
            self.meter.left.set(Some(left - read as u64));
        }
        Ok(read)
    }
}

impl<R: Seek> Seek for Source<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}
