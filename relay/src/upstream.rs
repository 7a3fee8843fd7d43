//! Where visitors are led: the part that published ports and named routes have in common.

use std::fmt;

use isthmus_proto::MediatorId;
use isthmus_proto::door::proxy_protocol::Version;

/// Most mediators that share one port's or one name's visitors.
pub const MEDIATORS_MAX: usize = 64;

/// Reads `MEDIATOR[|MEDIATOR]...`: those who share the visitors.
///
/// # Errors
/// Says what is wrong.
pub fn mediators(text: &str) -> Result<Vec<MediatorId>, String> {
    let mut ids: Vec<MediatorId> = Vec::new();
    for word in text.split('|') {
        let id = word.parse().map_err(|error| format!("'{word}': {error}"))?;
        if ids.contains(&id) {
            return Err(format!("'{word}' is named twice"));
        }
        ids.push(id);
    }
    if ids.len() > MEDIATORS_MAX {
        return Err(format!("these are more than {MEDIATORS_MAX} mediators"));
    }
    Ok(ids)
}

/// What may follow the host: `,proxy=v1` or `,proxy=v2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The host is told of the visitor's real address by this version of the PROXY protocol.
    pub proxy: Option<Version>,
}

impl Options {
    /// Splits `text` at its first comma, and reads what follows.
    ///
    /// # Errors
    /// Names the option, and those that there are.
    pub fn split(text: &str) -> Result<(&str, Self), String> {
        let mut words = text.split(',');
        let front = words.next().unwrap_or_default().trim_end();
        let mut options = Self::default();
        for word in words {
            let proxy = match word.trim() {
                "proxy=v1" => Version::V1,
                "proxy=v2" => Version::V2,
                other => return Err(format!("'{other}' is no option: there are proxy=v1 and proxy=v2")),
            };
            if options.proxy.replace(proxy).is_some() {
                return Err("proxy= is given twice".into());
            }
        }
        Ok((front, options))
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.proxy {
            None => Ok(()),
            Some(Version::V1) => f.write_str(",proxy=v1"),
            Some(Version::V2) => f.write_str(",proxy=v2"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mediators_are_checked_on_both_sides_of_each_edge() {
        assert_eq!(mediators("a").unwrap().len(), 1);
        assert_eq!(mediators("a|b").unwrap()[1].as_str(), "b");
        let many = |count: usize| (0..count).map(|n| format!("m{n}")).collect::<Vec<_>>().join("|");
        assert_eq!(mediators(&many(MEDIATORS_MAX)).unwrap().len(), MEDIATORS_MAX);
        for (bad, part) in
            [("", "''"), ("a|", "''"), ("a|b|a", "'a' is named twice"), (&many(MEDIATORS_MAX + 1), "more than 64")]
        {
            assert!(mediators(bad).unwrap_err().contains(part), "{bad}");
        }
    }

    #[test]
    fn options_print_as_they_are_written() {
        for text in ["x", "x,proxy=v1", "x,proxy=v2"] {
            let (front, options) = Options::split(text).unwrap();
            assert_eq!(format!("{front}{options}"), text);
        }
        assert_eq!(Options::split("x , proxy=v2").unwrap().1.proxy, Some(Version::V2));
        for bad in ["x,proxy=v3", "x,", "x,proxy=v1,proxy=v1", "x,mtu=9"] {
            assert!(Options::split(bad).is_err(), "{bad}");
        }
    }
}
