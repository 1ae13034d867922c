//! `packetboat crds`: the CustomResourceDefinitions, as `kubectl apply` takes them.

use std::io::Write;

use anyhow::{Context, Result};

/// Prints all CRDs as YAML documents.
pub(crate) fn print() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for crd in domains::crds() {
        let yaml = serde_saphyr::to_string(&crd).context("cannot write a CRD as YAML")?;
        write!(out, "---\n{yaml}").context("cannot print")?;
    }
    Ok(())
}
