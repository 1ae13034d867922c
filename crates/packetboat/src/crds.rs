//! `packetboat crds`: the CustomResourceDefinitions, as `kubectl apply` takes them.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::Crds;

/// Prints all CRDs as YAML documents, or writes each to a file named by its plural.
pub(crate) fn run(arguments: &Crds) -> Result<()> {
    for crd in domains::crds() {
        let yaml = serde_saphyr::to_string(&crd).context("cannot write a CRD as YAML")?;
        match &arguments.folder {
            Some(folder) => {
                let plural = crd.pointer("/spec/names/plural").and_then(|name| name.as_str());
                write(folder, plural.context("a CRD has no plural name")?, &yaml)?;
            }
            None => write!(std::io::stdout(), "---\n{yaml}").context("cannot print")?,
        }
    }
    Ok(())
}

fn write(folder: &Path, name: &str, yaml: &str) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, yaml).with_context(|| format!("cannot write {}", file.display()))
}
