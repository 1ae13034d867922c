//! Makes a certificate of our own where none is configured, so that STARTTLS works from the first
//! start. Opportunistic senders do not verify it (RFC 7435); a public site should configure a real one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{CertificateParams, DnType, KeyPair};

use crate::error::TlsError;
use crate::files::IdentityFiles;
use crate::server::identity;

/// The identity under `data_dir/tls`, made for `hostname` if it is not there yet. Once made it
/// stays; whoever wants a new one deletes the two files.
pub(crate) fn in_folder(data_dir: &Path, hostname: &str) -> Result<IdentityFiles, TlsError> {
    let folder = data_dir.join("tls");
    let files = identity(&folder.join("self-signed.crt"), &folder.join("self-signed.key"));
    if !(files.certificate.path.exists() && files.key.path.exists()) {
        fs::create_dir_all(&folder).map_err(|source| TlsError::Write { path: folder, source })?;
        generate(&files, hostname)?;
    }
    Ok(files)
}

fn generate(files: &IdentityFiles, hostname: &str) -> Result<(), TlsError> {
    let failed = |source| TlsError::Generate { hostname: hostname.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new([hostname.to_owned()]).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, hostname);
    let certificate = params.self_signed(&key).map_err(failed)?;
    // The certificate comes last: a start that was cut off between the two makes both again.
    write(&files.key.path, key.serialize_pem().as_bytes(), 0o600)?;
    write(&files.certificate.path, certificate.pem().as_bytes(), 0o644)?;
    tracing::info!(certificate = %files.certificate.path.display(), "self-signed certificate made");
    Ok(())
}

/// Writes through a temporary file, so that a reader never sees half of it.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    let new = path.with_extension("new");
    let store = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    store().map_err(|source| TlsError::Write { path: path.to_owned(), source })
}
