//! Errors as people read them: what failed, and below it why.

/// Prints an error with its causes to standard error.
pub(crate) fn print(error: &anyhow::Error) {
    eprint!("{}", text(error));
}

/// What failed on the first line; each cause on lines of its own below.
fn text(error: &anyhow::Error) -> String {
    let mut text = format!("packetboat: {error}\n");
    for line in causes(error) {
        text.push_str("  ");
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// An error with its causes on one line, for the log.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for line in causes(error) {
        text.push_str(": ");
        text.push_str(&line);
    }
    text
}

/// The lines of all causes; some errors tell their cause in their own words already.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut last = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.contains(&cause) {
            lines.extend(cause.lines().map(str::to_owned));
        }
        last = cause;
    }
    lines
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_told_once_and_below() {
        let error =
            anyhow!("permission denied").context("cannot bind: permission denied").context("no start");
        assert_eq!(text(&error), "packetboat: no start\n  cannot bind: permission denied\n");
        assert_eq!(one_line(&error), "no start: cannot bind: permission denied");
    }
}
