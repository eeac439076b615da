//! The routes of this node in a file, so that a process that is started later, or that takes over from this one, knows
//! them from its first login on.
//!
//! The file is written beside the running cache, some routes at a time, and replaced as a whole. One that cannot be
//! used is set aside under another name before the first one is written in its place. What its routes are worth is
//! not decided here but in `restored.rs`.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mail_directory::secret_file;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::RouteCache;
use super::fetch::DOWN_PAUSE;
use super::known::{Kept, Millis, RESTORED, UNSURE};
use crate::key::Key;
use crate::placement::PlacementAttributes;
use crate::source::Source;

mod blocks;
mod records;

use blocks::{BlockReader, BlockWriter, Kind, MAX_PAYLOAD};
use records::{Bytes, Decoder, Encoder, Record};

/// The shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Most bytes that are written in a second, on average: a file of ten thousand routes every few seconds, one of a
/// million every few minutes.
const RATE: u64 = 100_000;
/// When the file is written although all its routes are still the same: their ages are not.
const OLD: Duration = Duration::from_secs(600);
/// Routes that are copied while a lock of the table is held once.
const AT_ONCE: usize = 256;
/// How long the start of a node may wait for the directory to say what changed since the file was written.
const CONFIRMATION: Duration = Duration::from_secs(2);
/// Routes in a file, for each that the table may hold. Some may be there twice.
const MOST: u64 = 2;

/// Why the file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeptFileError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(io::Error),
    /// Others may have written or read it.
    #[error("it is no file that only its owner, this user, may read and change")]
    Open,
    /// Another version of this program has written it, in a form that this one does not know.
    #[error("it has the form of another version")]
    Version,
    /// It is not what was written.
    #[error("it is damaged")]
    Damaged,
    /// It is about other accounts.
    #[error("it belongs to another directory")]
    Foreign,
    /// Accounts were read in another way.
    #[error("zimbraReverseProxyMailHostAttribute or zimbraReverseProxyUserNameAttribute has changed since")]
    Attributes,
}

impl From<io::Error> for KeptFileError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged,
            _ => Self::Io(error),
        }
    }
}

/// The routes of a cache, kept in a file.
pub struct KeptRoutes {
    cache: Arc<RouteCache>,
    path: PathBuf,
    /// Held while the file is written, on a thread for that.
    writer: Arc<Mutex<Writer>>,
    /// What was loaded, to be asked for again.
    order: Mutex<Vec<Key>>,
}

#[derive(Default)]
struct Writer {
    /// Another process owns the file now.
    closed: bool,
    /// What is there cannot be used.
    spoilt: bool,
    /// The last write failed.
    failing: bool,
    /// What the cache had counted before the last write.
    written: (u64, u64),
    last: Option<Instant>,
    bytes: u64,
}

/// What the routes of a file are about, and how far they are true.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// [`System::identity`](mail_directory::System::identity), if the directory has one.
    directory: String,
    /// Whether lookup services were asked for accounts.
    services: bool,
    attributes: PlacementAttributes,
    /// How far the directory had come.
    point: Option<Arc<str>>,
    /// Milliseconds since 1970.
    written: u64,
}

/// What a file had.
struct Loaded {
    header: Header,
    /// The one that was asked for last before the others.
    order: Vec<Key>,
}

impl KeptRoutes {
    /// The routes of `cache`, to be kept in the file `path`. Nothing is read or written yet.
    pub fn new(cache: Arc<RouteCache>, path: PathBuf) -> Self {
        Self {
            cache,
            path,
            writer: Arc::default(),
            order: Mutex::default(),
        }
    }

    /// Takes over what the file has, and asks the directory what changed since it was written; not for long. To be
    /// called before the first lookup. A file that cannot be used is left alone.
    pub async fn load(&self) {
        match self.read().await {
            Ok(None) => {}
            Ok(Some(loaded)) => {
                log::info!("{} routes were kept in {}", loaded.order.len(), self.path.display());
                self.cache.restored.loaded(loaded.header.point);
                *self.order.lock() = loaded.order;
                match timeout(CONFIRMATION, self.cache.confirm()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => log::warn!("kept routes serve while the directory is down: {error}"),
                    Err(_) => {
                        log::warn!("kept routes serve while the directory is down: no answer in {CONFIRMATION:?}")
                    }
                }
            }
            Err(error) => {
                self.writer.lock().spoilt = true;
                log::warn!(
                    "the routes that are kept in {} are not used; the file will be set aside: {error}",
                    self.path.display()
                );
            }
        }
    }

    /// Asks again for what was loaded, and writes the file each time that something has changed, until it is dropped.
    pub async fn follow(&self) {
        tokio::join!(self.catch_up(), self.write_changes());
    }

    /// Writes what the file does not say yet, and nothing more after that: another process will read it.
    pub async fn write_last(&self) {
        self.write(|writer, cache, path| {
            if !writer.closed && writer.has_news(cache) {
                writer.write(cache, path);
            }
            writer.closed = true;
        })
        .await;
    }

    /// No other process will read the file: this one goes on to write it.
    pub fn write_on(&self) {
        self.writer.lock().closed = false;
    }

    /// How long ago the file was written; `None` if this process has not written it yet.
    pub fn age(&self) -> Option<Duration> {
        Some(self.writer.try_lock()?.last?.elapsed())
    }

    async fn read(&self) -> Result<Option<Loaded>, KeptFileError> {
        let (cache, path) = (self.cache.clone(), self.path.clone());
        let read = tokio::task::spawn_blocking(move || {
            let loaded = open(&path).and_then(|file| file.map(|file| load(&cache, file)).transpose());
            if loaded.is_err() {
                // What came before the damage may be wrong, too.
                cache.clear_here();
            }
            loaded
        });
        read.await.map_err(|error| KeptFileError::Io(io::Error::other(error)))?
    }

    async fn catch_up(&self) {
        while let Err(error) = self.cache.confirm().await {
            log::debug!("it is not known yet what changed since the routes were kept: {error}");
            sleep(DOWN_PAUSE).await;
        }
        let order = std::mem::take(&mut *self.order.lock());
        self.cache.renew_restored(order).await;
    }

    async fn write_changes(&self) {
        loop {
            sleep(PAUSE).await;
            self.write(|writer, cache, path| {
                if writer.is_due() && writer.has_news(cache) {
                    writer.write(cache, path);
                }
            })
            .await;
        }
    }

    /// Off the threads that serve. It goes on to its end, also when its caller has gone.
    async fn write(&self, write: fn(&mut Writer, &RouteCache, &Path)) {
        let (cache, path, writer) = (self.cache.clone(), self.path.clone(), self.writer.clone());
        let written = tokio::task::spawn_blocking(move || write(&mut writer.lock(), &cache, &path));
        if let Err(error) = written.await {
            log::error!("keeping routes: {error}");
        }
    }
}

impl Writer {
    fn is_due(&self) -> bool {
        let pause = PAUSE.max(Duration::from_secs(self.bytes / RATE));
        !self.closed && self.last.is_none_or(|last| last.elapsed() >= pause)
    }

    fn has_news(&self, cache: &RouteCache) -> bool {
        let (changes, renewals) = cache.unwritten.counts();
        let is_old = self.last.is_none_or(|last| last.elapsed() >= OLD);
        changes != self.written.0 || (renewals != self.written.1 && is_old)
    }

    fn write(&mut self, cache: &RouteCache, path: &Path) {
        // What changes from here on may be in the file or not, and so is written again.
        let counts = cache.unwritten.counts();
        let mut bytes = 0;
        let written = self.set_aside(path).and_then(|()| {
            secret_file::replace(path, |file| {
                bytes = store(cache, file)?;
                Ok(())
            })
        });
        self.last = Some(Instant::now());
        match written {
            Ok(()) => {
                log::debug!("routes are kept in {}, {bytes} bytes", path.display());
                (self.written, self.bytes, self.failing) = (counts, bytes, false);
            }
            Err(error) if !self.failing => {
                self.failing = true;
                log::warn!("the routes cannot be kept in {}: {error}", path.display());
            }
            Err(error) => log::debug!("routes: {error}"),
        }
    }

    /// A file that cannot be used is for somebody to look at.
    fn set_aside(&mut self, path: &Path) -> io::Result<()> {
        if self.spoilt {
            match fs::rename(path, secret_file::beside(path, ".unusable")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.spoilt = false,
            }
        }
        Ok(())
    }
}

/// The file, if there is one and nobody else could have written it: its servers are sent passwords.
fn open(path: &Path) -> Result<Option<File>, KeptFileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        // Opening a pipe would wait for its writer.
        Ok(_) => return Err(KeptFileError::Open),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let (file, own) = (File::open(path)?, fs::metadata("/proc/self")?.uid());
    let facts = file.metadata()?;
    let is_private = facts.mode() & 0o077 == 0 && [0, own].contains(&facts.uid());
    match facts.is_file() && is_private {
        true => Ok(Some(file)),
        false => Err(KeptFileError::Open),
    }
}

/// Writes everything.
fn store(cache: &RouteCache, file: &mut File) -> io::Result<u64> {
    let mut blocks = BlockWriter::new(BufWriter::new(file))?;
    // Before the routes: what is in the table later has followed the directory further.
    blocks.write(Kind::Header, &Header::of(cache).encoded())?;
    let (mut encoder, mut payload, mut count) = (Encoder::default(), Vec::new(), 0_u64);
    let (mut place, now) = (cache.known.begin(), cache.now());
    loop {
        let some = cache
            .known
            .walk(&mut place, AT_ONCE, |key, kept| Some((key.clone(), kept.clone())));
        for (key, kept) in &some {
            if let Some(record) = record(cache, now, key, kept) {
                encoder.record(&mut payload, &record);
                count += 1;
            }
            if payload.len() >= MAX_PAYLOAD / 2 {
                blocks.write(Kind::Routes, &payload)?;
                payload.clear();
            }
        }
        if some.is_empty() {
            break;
        }
    }
    blocks.write(Kind::Routes, &payload)?;
    payload.clear();
    records::number(&mut payload, count);
    blocks.write(Kind::End, &payload)?;
    blocks.finish()
}

/// `None` for what would serve no more.
fn record(cache: &RouteCache, now: Millis, key: &Key, kept: &Kept) -> Option<Record> {
    let age = now.saturating_sub(kept.at);
    let life = cache.ttl.load(Ordering::Relaxed) + cache.stale.load(Ordering::Relaxed);
    (age < life).then(|| Record {
        key: key.clone(),
        age_secs: age.div_ceil(1000),
        sure: cache.is_sure(kept),
        what: kept.what.clone(),
    })
}

/// Puts everything that a file has into the table.
fn load(cache: &RouteCache, file: File) -> Result<Loaded, KeptFileError> {
    let mut blocks = BlockReader::new(BufReader::with_capacity(MAX_PAYLOAD, file))?;
    let (Kind::Header, payload) = blocks.next()? else {
        return Err(KeptFileError::Damaged);
    };
    let header = Header::decoded(payload).ok_or(KeptFileError::Damaged)?;
    header.fits(&Header::of(cache))?;
    let since = unix_millis().saturating_sub(header.written);
    let aged = load_routes(cache, blocks, since)?;
    Ok(Loaded {
        header,
        order: in_order(aged),
    })
}

/// Returns the keys, with the ages of their answers in seconds when the file was written.
fn load_routes<R: Read>(
    cache: &RouteCache,
    mut blocks: BlockReader<R>,
    since: Millis,
) -> Result<Vec<(u64, Key)>, KeptFileError> {
    let most = cache.settings.capacity.saturating_mul(MOST);
    let (mut decoder, mut aged, mut count) = (Decoder::default(), Vec::new(), 0_u64);
    loop {
        let (kind, payload) = blocks.next()?;
        let mut bytes = Bytes(payload);
        match kind {
            Kind::Header => return Err(KeptFileError::Damaged),
            Kind::End if bytes.number() == Some(count) && bytes.0.is_empty() => return Ok(aged),
            Kind::End => return Err(KeptFileError::Damaged),
            Kind::Routes => {}
        }
        while !bytes.0.is_empty() {
            let record = decoder.record(&mut bytes).ok_or(KeptFileError::Damaged)?;
            count += 1;
            // With a smaller capacity than before, the table pushes out some for others.
            if count <= most {
                aged.extend(put(cache, record, since));
            }
        }
    }
}

/// `None` if it is too old to serve, or known already.
fn put(cache: &RouteCache, record: Record, since: Millis) -> Option<(u64, Key)> {
    let Record {
        key,
        age_secs,
        sure,
        what,
    } = record;
    let age = age_secs.saturating_mul(1000).saturating_add(since);
    let life = cache.ttl.load(Ordering::Relaxed) + cache.stale.load(Ordering::Relaxed);
    if age >= life || cache.known.peek(&key).is_some() {
        return None;
    }
    let (at, epoch) = (cache.now().saturating_sub(age), if sure { RESTORED } else { UNSURE });
    cache.known.insert(key.clone(), Kept { at, epoch, what });
    Some((age_secs, key))
}

/// A route in use is asked for again before it expires, so what was asked for last was used last.
fn in_order(mut aged: Vec<(u64, Key)>) -> Vec<Key> {
    aged.sort_by_key(|(age, _)| *age);
    aged.into_iter().map(|(_, key)| key).collect()
}

impl Header {
    /// What the file of this cache would say now.
    fn of(cache: &RouteCache) -> Self {
        let system = cache.directory.system();
        Self {
            directory: system.identity().unwrap_or_default().to_owned(),
            services: matches!(cache.source, Source::Services(_)),
            attributes: PlacementAttributes::of(&system),
            point: cache.restored.point(),
            written: unix_millis(),
        }
    }

    /// Whether a file with this header is about what `own` is about.
    fn fits(&self, own: &Self) -> Result<(), KeptFileError> {
        if self.directory != own.directory || self.services != own.services {
            return Err(KeptFileError::Foreign);
        }
        match self.attributes == own.attributes {
            true => Ok(()),
            false => Err(KeptFileError::Attributes),
        }
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let login = self.attributes.login.as_deref();
        for text in [
            &self.directory,
            &self.attributes.mail_host,
            login.unwrap_or_default(),
            self.point.as_deref().unwrap_or_default(),
        ] {
            records::text(&mut out, text);
        }
        records::number(&mut out, u64::from(self.services));
        records::number(&mut out, self.written);
        out
    }

    fn decoded(payload: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(payload);
        let mut text = || bytes.text();
        let (directory, mail_host, login, point) = (text()?.to_owned(), text()?.to_owned(), text()?, text()?);
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Some(Self {
            directory,
            attributes: PlacementAttributes {
                mail_host,
                login: given(login),
            },
            point: given(point).map(Arc::from),
            services: bytes.number()? == 1,
            written: bytes.number()?,
        })
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
