//! The MX plan: the hosts to try for a domain, in order (RFC 5321 §5.1).

use crate::error::MxError;

/// One host to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MxHost {
    /// Its name, in lower case, without a final dot.
    pub name: String,
    /// Lower is tried first. 0 for an implicit MX.
    pub preference: u16,
}

/// The hosts to try for a domain: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MxPlan {
    /// The hosts, most preferred first, in random order where equally preferred.
    pub hosts: Vec<MxHost>,
    /// The domain has no MX record: it is its own and only exchanger.
    pub implicit: bool,
}

/// Makes a plan of the MX records that a look-up found. None found: the domain itself.
///
/// `own_name` is this server's name: it and hosts no better than it are left out (RFC 5321 §5.1),
/// which is what stops loops between exchangers of one domain.
pub(crate) fn plan(
    domain: &str,
    records: Vec<MxHost>,
    own_name: &str,
    max_hosts: usize,
) -> Result<MxPlan, MxError> {
    let implicit = records.is_empty();
    // RFC 7505 §3: a null MX stands alone; beside others the root is just no host name.
    let mut hosts: Vec<MxHost> = if implicit {
        vec![MxHost { name: domain.to_owned(), preference: 0 }]
    } else {
        records.into_iter().filter(|host| !host.name.is_empty()).collect()
    };
    if hosts.is_empty() {
        return Err(MxError::NullMx { domain: domain.to_owned() });
    }
    let own_name = own_name.trim_end_matches('.');
    let own_preference = hosts
        .iter()
        .filter(|host| host.name.eq_ignore_ascii_case(own_name))
        .map(|host| host.preference)
        .min();
    if let Some(own) = own_preference {
        hosts.retain(|host| host.preference < own);
    }
    if hosts.is_empty() {
        return Err(MxError::OnlySelf { domain: domain.to_owned() });
    }
    hosts.sort_by_cached_key(|host| (host.preference, rand::random::<u32>()));
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|host| seen.insert(host.name.clone()));
    hosts.truncate(max_hosts);
    Ok(MxPlan { hosts, implicit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(u16, &str)]) -> Vec<MxHost> {
        list.iter().map(|&(preference, name)| MxHost { name: name.to_owned(), preference }).collect()
    }

    fn names(list: &[(u16, &str)]) -> Result<Vec<String>, MxError> {
        let plan = plan("example.org", records(list), "MX.us.example", 4)?;
        Ok(plan.hosts.into_iter().map(|host| host.name).collect())
    }

    #[test]
    fn hosts_are_sorted_by_preference_and_told_once() {
        let plan = names(&[(20, "b"), (10, "a"), (30, "a"), (40, "d"), (50, "e"), (60, "f")]).unwrap();
        assert_eq!(plan, ["a", "b", "d", "e"]);
    }

    #[test]
    fn equal_preferences_come_in_random_order() {
        let firsts: std::collections::HashSet<String> =
            (0..200).map(|_| names(&[(10, "a"), (10, "b")]).unwrap().remove(0)).collect();
        assert_eq!(firsts.len(), 2);
    }

    #[test]
    fn this_host_and_no_better_ones_are_left_out() {
        let plan = names(&[(10, "a"), (20, "mx.us.example"), (20, "b"), (30, "c")]).unwrap();
        assert_eq!(plan, ["a"]);
        assert!(matches!(names(&[(10, "mx.us.example"), (20, "b")]), Err(MxError::OnlySelf { .. })));
    }

    #[test]
    fn a_null_mx_stands_alone() {
        assert!(matches!(names(&[(0, "")]), Err(MxError::NullMx { .. })));
        assert_eq!(names(&[(0, ""), (10, "a")]).unwrap(), ["a"]);
    }

    #[test]
    fn no_record_makes_the_domain_its_own_host() {
        let implicit = plan("example.org", Vec::new(), "mx.us.example", 4).unwrap();
        assert!(implicit.implicit);
        assert_eq!(implicit.hosts, records(&[(0, "example.org")]));
        let own = plan("mx.us.example", Vec::new(), "mx.us.example", 4);
        assert!(matches!(own, Err(MxError::OnlySelf { .. })));
    }
}
