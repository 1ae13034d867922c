//! SPF, DKIM, DMARC, ARC and iprev, verified and signed; the only user of mail-auth.
//!
//! A message comes in chunks into a [`Scan`], which holds its header section and hashes its body as it
//! passes. [`Authenticator::check_client`] judges who sent it, [`Authenticator::verify`] what it claims;
//! the [`Verification`] becomes an `Authentication-Results` field ([`Verification::render`]).
//! [`Signer`]s sign what a [`Scan`] has seen.
//!
//! What is mail-auth's: the form and the cryptography of DKIM signatures and keys, header
//! canonicalisation, the ARC chain. What is done here, because mail-auth 0.13.3 does it otherwise than
//! the RFCs or this project want: the split of the header section; body canonicalisation (its relaxed
//! form is wrong where a body ends in lines of white space); the conditions a DKIM signature must meet
//! before it counts; SPF (see [`spf`]); and DMARC (it does not know `pct`, drops records with a faulty
//! optional tag, and takes the first of several records). All DNS goes through [`dns`], with its limits
//! and its memory.

mod arc;
mod body;
mod cache;
mod client;
mod config;
mod content;
mod dkim;
mod dmarc;
mod dns;
mod error;
mod forged;
mod keys;
mod results;
mod sign;
mod spf;
mod tags;
mod verify;

pub use arc::{ArcCheck, ArcResult};
pub use client::{Client, ClientCheck, IprevCheck, IprevResult, SpfCheck, SpfIdentity, SpfResult};
pub use config::Config;
pub use content::{Purpose, Scan, Scanned};
pub use dkim::{DkimCheck, DkimResult};
pub use dmarc::{DmarcCheck, DmarcResult, Policy};
pub use error::{SetupError, SignError, SigningKeyError};
pub use forged::forged_results;
pub use sign::{Algorithm, Signer, Validity};
pub use verify::{Authenticator, Verification};
