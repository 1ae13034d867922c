//! The `maildir` route: `DIR/<domain>/<local part>/{tmp,new,cur}`, quarantined mail in a subfolder.
//!
//! A message is written under `tmp`, synced, renamed into `new`, and `new` is synced: it is there
//! whole, or not at all. Its name follows from the entry's id, so an entry that is delivered again
//! after a crash replaces its first copy in `new`, and is left alone where a reader has moved it to `cur`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use message::Failure;
use queue::Leased;
use smtp::Mailbox;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::content::ContentReader;
use crate::transfer::RecipientOutcome;

/// Pieces of a long content that wait for the disk.
const PIECES_IN_FLIGHT: usize = 2;

/// One message on its way into some mailboxes.
#[derive(Debug)]
pub(crate) struct Filing {
    /// The Maildir of each recipient, and the message's file name there.
    mailboxes: Vec<(PathBuf, String)>,
    /// The `Return-Path` field (RFC 5321 §4.4).
    return_path: Vec<u8>,
    /// Length of the content, in octets.
    size: u64,
    /// The entry was leased before, so a copy may be there already.
    repeated: bool,
}

/// The Maildir of a mailbox under a route's folder. The local part's case is folded.
pub(crate) fn mailbox_folder(root: &Path, mailbox: &Mailbox, subfolder: Option<&str>) -> PathBuf {
    let mut folder = root.join(safe_name(&mailbox.domain().to_string()));
    folder.push(safe_name(&mailbox.local_part().to_lowercase()));
    if let Some(subfolder) = subfolder {
        folder.push(format!(".{}", safe_name(subfolder)));
    }
    folder
}

/// A name of one path component, different for different texts: `/`, `%`, a leading dot, and control
/// characters are written as `%` and two digits.
fn safe_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if matches!(c, '/' | '%' | ':') || c.is_ascii_control() || (at == 0 && c == '.') {
            name.push_str(&format!("%{:02x}", c as u32));
        } else {
            name.push(c);
        }
    }
    name
}

impl Filing {
    /// Files a message for `recipients` (their places in the entry, and their Maildirs).
    pub(crate) fn new(leased: &Leased, hostname: &str, recipients: Vec<(usize, PathBuf)>) -> Self {
        let arrived = leased.message.accepted_at.0 / 1000;
        let name = |place| format!("{arrived}.{}R{place}.{hostname}", leased.entry.id);
        Self {
            mailboxes: recipients.into_iter().map(|(place, folder)| (folder, name(place))).collect(),
            return_path: format!("Return-Path: <{}>\r\n", leased.message.envelope.reverse_path).into_bytes(),
            size: leased.message.size,
            repeated: leased.entry.epoch > 1,
        }
    }

    /// Writes the message; one outcome for each recipient, in their order.
    pub(crate) async fn run(self, leased: &Leased, content: ContentReader) -> Vec<RecipientOutcome> {
        let count = self.mailboxes.len();
        let filed = match &leased.inline {
            Some(inline) if leased.message.parts == 0 => {
                let slices = inline.slices().to_vec();
                spawn_blocking(move || self.write(slices.into_iter())).await
            }
            _ => self.write_long(content).await,
        };
        match filed {
            Ok(filed) => filed.into_iter().map(outcome).collect(),
            Err(_) => vec![outcome(Err(io::Error::other("the writer failed"))); count],
        }
    }

    async fn write_long(
        self,
        mut content: ContentReader,
    ) -> Result<Vec<io::Result<()>>, tokio::task::JoinError> {
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES_IN_FLIGHT);
        let writer = spawn_blocking(move || self.write(std::iter::from_fn(move || waiting.blocking_recv())));
        loop {
            match content.next().await {
                Ok(Some(piece)) => {
                    if pieces.send(piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // The writer sees too few octets, and files nothing.
                    tracing::warn!(error = %crate::error::with_causes(&error), "content cannot be read");
                    break;
                }
            }
        }
        drop(pieces);
        writer.await
    }

    /// Writes the content into every mailbox in one pass. Runs on a blocking thread.
    fn write(self, content: impl Iterator<Item = Bytes>) -> Vec<io::Result<()>> {
        let mut drafts: Vec<io::Result<Option<Draft>>> =
            self.mailboxes.iter().map(|(folder, name)| self.draft(folder, name)).collect();
        let mut written = 0;
        for piece in content {
            written += piece.len() as u64;
            each(&mut drafts, |draft| draft.file.write_all(&piece));
        }
        if written != self.size {
            each(&mut drafts, |_| {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content is not whole"))
            });
        }
        drafts.into_iter().map(|draft| draft?.map_or(Ok(()), Draft::publish)).collect()
    }

    /// Opens a file under `tmp`; `None` when the message is in the mailbox already.
    fn draft(&self, folder: &Path, name: &str) -> io::Result<Option<Draft>> {
        if self.repeated && was_read(folder, name)? {
            return Ok(None);
        }
        let path = folder.join("tmp").join(format!("{name}.{:016x}", rand::random::<u64>()));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_mailbox(folder)?;
                open()?
            }
            opened => opened?,
        };
        let mut draft =
            Draft { folder: folder.to_owned(), name: name.to_owned(), path, file, published: false };
        draft.file.write_all(&self.return_path)?;
        Ok(Some(draft))
    }
}

/// Does something with every draft that is still good.
fn each(drafts: &mut [io::Result<Option<Draft>>], mut action: impl FnMut(&mut Draft) -> io::Result<()>) {
    for slot in drafts {
        if let Ok(Some(draft)) = slot
            && let Err(error) = action(draft)
        {
            *slot = Err(error);
        }
    }
}

/// A message being written under `tmp`; gone from there when dropped unpublished.
struct Draft {
    folder: PathBuf,
    name: String,
    path: PathBuf,
    file: File,
    published: bool,
}

impl Draft {
    fn publish(mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let new = self.folder.join("new");
        fs::rename(&self.path, new.join(&self.name))?;
        self.published = true;
        sync_folder(&new)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What stays behind under tmp is harmless: readers of a Maildir sweep it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a reader has moved the message to `cur`, where flags follow its name.
fn was_read(folder: &Path, name: &str) -> io::Result<bool> {
    let read = match fs::read_dir(folder.join("cur")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        read => read?,
    };
    for file in read {
        if file?.file_name().to_str().is_some_and(|file| file.split(':').next() == Some(name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn make_mailbox(folder: &Path) -> io::Result<()> {
    for part in ["cur", "new", "tmp"] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(part))?;
    }
    // The mailbox may be new in its domain's folder, and that in the route's.
    folder.ancestors().take(4).filter(|ancestor| !ancestor.as_os_str().is_empty()).try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// No fault of a local disk is the recipient's: all of them pass.
fn outcome(filed: io::Result<()>) -> RecipientOutcome {
    let Err(error) = filed else {
        return RecipientOutcome::Delivered { by: "maildir".to_owned(), reply: "filed".to_owned() };
    };
    tracing::warn!(%error, "message not filed in its maildir");
    let (status, text) = match error.kind() {
        io::ErrorKind::StorageFull => ("4.3.1", "the mail store is full"),
        io::ErrorKind::QuotaExceeded => ("4.2.2", "the mailbox is full"),
        _ => ("4.3.0", "the mail store cannot take the message now"),
    };
    RecipientOutcome::Deferred(Failure {
        status: status.to_owned(),
        reply: None,
        remote_mta: None,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_local_part_leaves_its_folder() {
        let folder = |address: &str| {
            let mailbox: Mailbox = address.parse().unwrap();
            mailbox_folder(Path::new("/mail"), &mailbox, None).to_str().unwrap().to_owned()
        };
        assert_eq!(folder("Alice@example.com"), "/mail/example.com/alice");
        assert_eq!(folder("\"../../etc/passwd\"@example.com"), "/mail/example.com/%2e.%2f..%2fetc%2fpasswd");
        assert_eq!(folder("\"..\"@example.com"), "/mail/example.com/%2e.");
        assert_eq!(folder("\"a%2fb\"@example.com"), "/mail/example.com/a%252fb");
        assert_eq!(folder("a@[IPv6:2001:db8::1]"), "/mail/[IPv6%3a2001%3adb8%3a%3a1]/a");
    }
}
