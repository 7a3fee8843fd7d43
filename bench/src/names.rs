//! Which mediators: the names that `mediators` gives its own and that `operate` uses.

use std::str::FromStr;

use isthmus_proto::MediatorId;

/// Most mediators of one run.
pub const COUNT_MAX: usize = 1_000_000;

/// Mediators by name: `a,b,c`, `PREFIX:COUNT` for `PREFIX0` to `PREFIX(COUNT-1)`, or `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// These.
    Given(Vec<MediatorId>),
    /// Those that the token names and that are connected.
    All,
}

impl FromStr for Names {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some((prefix, count)) = text.split_once(':') {
            let count = count.parse().map_err(|_| format!("'{count}' is no count; write PREFIX:COUNT"))?;
            return numbered(prefix, 0, count).map(Self::Given);
        }
        let names: Result<Vec<_>, _> = text.split(',').map(str::parse).collect();
        names.map(Self::Given).map_err(|error| format!("'{text}': {error}"))
    }
}

/// `PREFIX<first>` and the numbers after it.
///
/// # Errors
/// Such a name is not a mediator's, or there would be more than [`COUNT_MAX`].
pub fn numbered(prefix: &str, first: usize, count: usize) -> Result<Vec<MediatorId>, String> {
    if count > COUNT_MAX {
        return Err(format!("at most {COUNT_MAX} mediators"));
    }
    let name = |n: usize| format!("{prefix}{n}").parse().map_err(|error| format!("'{prefix}{n}': {error}"));
    (first..first.saturating_add(count)).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_numbered_or_all() {
        let given = |names: &[&str]| Ok(Names::Given(names.iter().map(|name| name.parse().unwrap()).collect()));
        assert_eq!("all".parse(), Ok(Names::All));
        assert_eq!("a,b-1".parse(), given(&["a", "b-1"]));
        assert_eq!("m-:3".parse(), given(&["m-0", "m-1", "m-2"]));
        for bad in ["", "a,,b", "m:x", "m:1000001", "-:1"] {
            assert!(bad.parse::<Names>().is_err(), "{bad}");
        }
    }
}
