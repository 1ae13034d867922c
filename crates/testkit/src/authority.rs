//! Private certificate authorities: one that services trust, or one whose files lie in a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// An authority of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Good,
    /// No more.
    Expired,
    /// Not yet.
    Future,
}

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "packetboat-test-authority");
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with these DNS names.
    pub fn issue(&self, names: &[&str], validity: Validity) -> Result<Identity> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        match validity {
            Validity::Good => {}
            Validity::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Validity::Future => params.not_before = date_time_ymd(3001, 1, 1),
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

impl Identity {
    /// Writes `tls.crt`, `tls.key` and `ca.crt` (these authorities) as a mounted Secret shows them.
    pub fn mount(&self, folder: &Path, authorities: &[&Authority]) -> Result<()> {
        let roots: String = authorities.iter().map(|authority| authority.pem()).collect();
        mount(folder, &[("tls.crt", &self.certificate), ("tls.key", &self.key), ("ca.crt", &roots)])
    }
}

/// Writes files as the kubelet shows a Secret: all at once, by a symbolic link to a folder of this version.
pub fn mount(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let version = tempfile::Builder::new().prefix("..").tempdir_in(folder)?.keep();
    for (name, text) in files {
        std::fs::write(version.join(name), text)?;
        let link = folder.join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link)?;
        }
    }
    let draft = folder.join("..draft");
    std::os::unix::fs::symlink(version.file_name().context("no name")?, &draft)?;
    Ok(std::fs::rename(draft, folder.join("..data"))?)
}

/// An authority whose files lie in a folder.
pub struct AuthorityFolder {
    folder: PathBuf,
    authority: Authority,
}

impl AuthorityFolder {
    /// A new authority; its certificate is `authority.pem` in the folder.
    pub fn new(folder: &Path) -> Result<Self> {
        let this = Self { folder: folder.to_owned(), authority: Authority::new()? };
        std::fs::write(this.certificate(), this.authority.pem())?;
        Ok(this)
    }

    /// The file of its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// A certificate for these names, as `NAME.pem` and `NAME.key` in the folder. Files of the name are replaced.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<(PathBuf, PathBuf)> {
        let identity = self.authority.issue(hosts, Validity::Good)?;
        let files = (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")));
        std::fs::write(&files.0, identity.certificate)?;
        std::fs::write(&files.1, identity.key)?;
        Ok(files)
    }
}
