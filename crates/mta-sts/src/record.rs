//! The TXT record `_mta-sts.<domain>` (RFC 8461 §3.1): it says that there is a policy, and by its id which.

/// What such a record begins with.
const VERSION: &str = "v=STSv1";

/// Why a domain's TXT records name no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// There is none.
    #[error("there is none")]
    Missing,
    /// Several, so that none counts.
    #[error("there are several, so none counts")]
    Several,
    /// Its id is missing, or is not 1 to 32 letters and digits.
    #[error("its id is missing, or is not 1 to 32 letters and digits")]
    Id,
}

/// The name of the record of a domain.
#[must_use]
pub fn name(domain: &str) -> String {
    format!("_mta-sts.{domain}")
}

/// The record with this id.
#[must_use]
pub fn text(id: &str) -> String {
    format!("{VERSION}; id={id};")
}

/// Whether a text begins as the record does.
#[must_use]
pub fn is_one(text: &str) -> bool {
    // RFC 8461 §3.1: records that do not begin with "v=STSv1;" are discarded.
    text.strip_prefix(VERSION).is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(';'))
}

/// The id that the TXT records at a domain's name tell; those of others are passed over.
///
/// # Errors
/// See [`RecordError`]: for senders there is no policy then.
pub fn id<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<&'a str, RecordError> {
    let mut ours = texts.into_iter().filter(|text| is_one(text));
    let record = ours.next().ok_or(RecordError::Missing)?;
    if ours.next().is_some() {
        return Err(RecordError::Several);
    }
    let fields = record.split(';').skip(1).filter_map(|field| field.split_once('='));
    let id = fields.map(|(name, value)| (name.trim(), value.trim())).find(|(name, _)| *name == "id");
    let is_id =
        |id: &&str| (1..=32).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric());
    id.map(|(_, id)| id).filter(is_id).ok_or(RecordError::Id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_senders_read_them() {
        for good in
            ["v=STSv1; id=20260101T1;", "v=STSv1;id=20260101T1", "v=STSv1 ; more=x; id = 20260101T1 ;"]
        {
            assert_eq!(id([good, "v=spf1 -all"]), Ok("20260101T1"), "{good}");
        }
        assert_eq!(id([text("a1").as_str()]), Ok("a1"));
        assert_eq!(id([]), Err(RecordError::Missing));
        assert_eq!(id(["v=STSv10; id=1;", "V=STSv1; id=1;"]), Err(RecordError::Missing));
        assert_eq!(id(["v=STSv1; id=1;", "v=STSv1; id=2;"]), Err(RecordError::Several));
        let long = format!("v=STSv1; id={};", "1".repeat(33));
        for bad in ["v=STSv1;", "v=STSv1; id=;", "v=STSv1; id=a-b;", &long] {
            assert_eq!(id([bad]), Err(RecordError::Id), "{bad}");
        }
    }
}
