//! A file system that forgets at a power cut what was not synced: what a disk's cache does.
//!
//! Names are kept at once, the octets of a file when it is synced. That is what the harshest of common file
//! systems allows itself, but for directories that are not synced.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, FileAttr, FileType, Filesystem, MountOption, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};
use rustix::io::Errno;
use tempfile::TempDir;

/// The kernel asks for everything anew.
const NEVER: Duration = Duration::ZERO;
const ROOT: u64 = 1;

/// A mounted volatile disk; it is gone when this is dropped. Needs root and `/dev/fuse`.
pub struct VolatileDisk {
    // In this order: unmounted before its mount point goes.
    _session: BackgroundSession,
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

impl VolatileDisk {
    /// Mounts an empty disk.
    pub fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("packetboat-disk-").tempdir()?;
        let mut nodes = HashMap::new();
        nodes.insert(ROOT, Node::folder());
        let state = Arc::new(Mutex::new(State { nodes, last: ROOT, forgotten: 0 }));
        let options = [MountOption::FSName("volatile".to_owned()), MountOption::DefaultPermissions];
        let _session = fuser::spawn_mount2(Disk(Arc::clone(&state)), folder.path(), &options)
            .context("mounting a volatile disk (root and /dev/fuse are needed)")?;
        Ok(Self { _session, folder, state })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The power goes: octets that were not synced are gone. Ends of processes come first. Says how many octets
    /// were forgotten in all cuts so far.
    pub fn cut_power(&self) -> u64 {
        let mut state = lock(&self.state);
        let mut forgotten = 0;
        for node in state.nodes.values_mut() {
            if let Content::File { now, synced } = &mut node.content {
                let same = now.iter().zip(synced.iter()).take_while(|(now, synced)| now == synced).count();
                forgotten += (now.len().max(synced.len()) - same) as u64;
                now.clone_from(synced);
            }
        }
        state.forgotten += forgotten;
        state.forgotten
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State {
    nodes: HashMap<u64, Node>,
    last: u64,
    forgotten: u64,
}

struct Node {
    content: Content,
    mode: u16,
    changed: SystemTime,
    links: u32,
}

enum Content {
    Folder(BTreeMap<std::ffi::OsString, u64>),
    File { now: Vec<u8>, synced: Vec<u8> },
}

impl Node {
    fn folder() -> Self {
        Self { content: Content::Folder(BTreeMap::new()), mode: 0o755, changed: SystemTime::now(), links: 2 }
    }

    fn file(mode: u16) -> Self {
        let content = Content::File { now: Vec::new(), synced: Vec::new() };
        Self { content, mode, changed: SystemTime::now(), links: 1 }
    }

    fn attributes(&self, number: u64) -> FileAttr {
        let (kind, size) = match &self.content {
            Content::Folder(_) => (FileType::Directory, 0),
            Content::File { now, .. } => (FileType::RegularFile, now.len() as u64),
        };
        FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: self.changed,
            mtime: self.changed,
            ctime: self.changed,
            crtime: self.changed,
            kind,
            perm: self.mode,
            nlink: self.links,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

type Outcome<T> = Result<T, Errno>;

impl State {
    fn node(&mut self, number: u64) -> Outcome<&mut Node> {
        self.nodes.get_mut(&number).ok_or(Errno::NOENT)
    }

    fn children(&mut self, number: u64) -> Outcome<&mut BTreeMap<std::ffi::OsString, u64>> {
        match &mut self.node(number)?.content {
            Content::Folder(children) => Ok(children),
            Content::File { .. } => Err(Errno::NOTDIR),
        }
    }

    fn octets(&mut self, number: u64) -> Outcome<(&mut Vec<u8>, &mut Vec<u8>)> {
        let node = self.node(number)?;
        node.changed = SystemTime::now();
        match &mut node.content {
            Content::File { now, synced } => Ok((now, synced)),
            Content::Folder(_) => Err(Errno::ISDIR),
        }
    }

    fn child(&mut self, parent: u64, name: &OsStr) -> Outcome<FileAttr> {
        let number = *self.children(parent)?.get(name).ok_or(Errno::NOENT)?;
        Ok(self.node(number)?.attributes(number))
    }

    fn add(&mut self, parent: u64, name: &OsStr, node: Node) -> Outcome<FileAttr> {
        let number = self.last + 1;
        if self.children(parent)?.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.children(parent)?.insert(name.to_owned(), number);
        self.last = number;
        let attributes = node.attributes(number);
        self.nodes.insert(number, node);
        Ok(attributes)
    }

    fn remove(&mut self, parent: u64, name: &OsStr) -> Outcome<()> {
        let number = *self.children(parent)?.get(name).ok_or(Errno::NOENT)?;
        if let Content::Folder(children) = &self.node(number)?.content
            && !children.is_empty()
        {
            return Err(Errno::NOTEMPTY);
        }
        self.children(parent)?.remove(name);
        // Who has it open goes on; it is kept, which costs memory alone.
        self.node(number)?.links = 0;
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Outcome<()> {
        let number = self.children(from.0)?.remove(from.1).ok_or(Errno::NOENT)?;
        self.children(to.0)?.insert(to.1.to_owned(), number);
        Ok(())
    }

    fn sync(&mut self, number: u64) -> Outcome<()> {
        let (now, synced) = self.octets(number)?;
        // Logs grow at their end: what is the same is not copied again.
        let same = synced.len().min(now.len());
        if now[..same] == synced[..same] {
            synced.truncate(same);
            synced.extend_from_slice(&now[same..]);
        } else {
            synced.clone_from(now);
        }
        Ok(())
    }
}

struct Disk(Arc<Mutex<State>>);

macro_rules! answer {
    ($outcome:expr, $reply:ident, |$value:ident| $told:expr) => {
        match $outcome {
            Ok($value) => $told,
            Err(error) => $reply.error(error.raw_os_error()),
        }
    };
}

impl Filesystem for Disk {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        answer!(lock(&self.0).child(parent, name), reply, |found| reply.entry(&NEVER, &found, 0));
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        let found = lock(&self.0).node(number).map(|node| node.attributes(number));
        answer!(found, reply, |found| reply.attr(&NEVER, &found));
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        number: u64,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<u64>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<u32>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let mut change = || {
            if let Some(size) = size {
                state.octets(number)?.0.resize(size as usize, 0);
            }
            let node = state.node(number)?;
            node.mode = mode.map_or(node.mode, |mode| (mode & 0o7777) as u16);
            Ok::<FileAttr, Errno>(node.attributes(number))
        };
        answer!(change(), reply, |found| reply.attr(&NEVER, &found));
    }

    fn mkdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        answer!(lock(&self.0).add(parent, name, Node::folder()), reply, |made| reply.entry(&NEVER, &made, 0));
    }

    fn create(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = lock(&self.0).add(parent, name, Node::file((mode & 0o7777) as u16));
        answer!(made, reply, |made| reply.created(&NEVER, &made, 0, 0, 0));
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        reply.opened(0, 0);
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let mut state = lock(&self.0);
        answer!(state.octets(number), reply, |octets| {
            let start = (offset as usize).min(octets.0.len());
            let end = (start + size as usize).min(octets.0.len());
            reply.data(&octets.0[start..end]);
        });
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        number: u64,
        _: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        answer!(state.octets(number), reply, |octets| {
            let (start, end) = (offset as usize, offset as usize + data.len());
            if octets.0.len() < end {
                octets.0.resize(end, 0);
            }
            octets.0[start..end].copy_from_slice(data);
            reply.written(data.len() as u32);
        });
    }

    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, number: u64, _: u64, _: bool, reply: ReplyEmpty) {
        answer!(lock(&self.0).sync(number), reply, |_done| reply.ok());
    }

    fn fsyncdir(&mut self, _: &Request<'_>, _: u64, _: u64, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn unlink(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        answer!(lock(&self.0).remove(parent, name), reply, |_done| reply.ok());
    }

    fn rmdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        answer!(lock(&self.0).remove(parent, name), reply, |_done| reply.ok());
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let done = lock(&self.0).rename((parent, name), (new_parent, new_name));
        answer!(done, reply, |_done| reply.ok());
    }

    fn readdir(&mut self, _: &Request<'_>, number: u64, _: u64, offset: i64, mut reply: ReplyDirectory) {
        let mut state = lock(&self.0);
        let children = match state.children(number) {
            Ok(children) => children.clone(),
            Err(error) => return reply.error(error.raw_os_error()),
        };
        let dots = [(".".into(), number), ("..".into(), ROOT)];
        for (at, (name, number)) in dots.into_iter().chain(children).enumerate().skip(offset as usize) {
            let is_folder =
                matches!(state.nodes.get(&number).map(|node| &node.content), Some(Content::Folder(_)));
            let kind = if is_folder { FileType::Directory } else { FileType::RegularFile };
            if reply.add(number, at as i64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&mut self, _: &Request<'_>, _: u64, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 19, 4096, 255, 4096);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_not_synced_is_gone() {
        let disk = VolatileDisk::mount().unwrap();
        let path = disk.path().join("folder/log");
        fs::create_dir(disk.path().join("folder")).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(b"kept").unwrap();
        file.sync_data().unwrap();
        file.write_all(b" and lost").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"kept and lost");
        assert_eq!(disk.cut_power(), 9);
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        fs::rename(&path, disk.path().join("other")).unwrap();
        assert_eq!(fs::read(disk.path().join("other")).unwrap(), b"kept");
    }
}
