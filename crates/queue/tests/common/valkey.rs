//! A Valkey server beside Debian's Redis.

use anyhow::{Result, ensure};

/// The path of its program.
pub(crate) async fn program() -> Result<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/valkey-server");
    let output = tokio::process::Command::new(script).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
