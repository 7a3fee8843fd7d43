//! Mediators' reports, as a shard keeps them.

use std::sync::Arc;

use isthmus_proto::hello::Report;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A mediator's report as JSON, which takes a third of what its parts take in memory. A clone costs a count, and it goes
/// into JSON as it is: a shard that tells of its tunnels reads none of it, only who asks for a part does.
#[derive(Clone, Debug)]
pub struct PackedReport(Arc<RawValue>);

impl PackedReport {
    /// The whole of it.
    pub fn unpack(&self) -> Report {
        self.read()
    }

    /// The parts of it that `T` names.
    pub(crate) fn read<T: DeserializeOwned + Default>(&self) -> T {
        // It was written by this program; where it could not be, it is null.
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }
}

impl From<&Report> for PackedReport {
    fn from(report: &Report) -> Self {
        // Plain data: it always serialises.
        let json = serde_json::value::to_raw_value(report).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self(json.into())
    }
}

impl PartialEq for PackedReport {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Eq for PackedReport {}

impl Serialize for PackedReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PackedReport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Through its parts, so that it is what this program would have written.
        Report::deserialize(deserializer).map(|report| Self::from(&report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stays_what_it_was_and_goes_into_json_as_it_is() {
        let report = Report {
            hostname: "a\n\"b\"".to_owned(),
            policy: vec!["10.0.0.0/8".parse().unwrap()],
            ..Report::default()
        };
        let packed = PackedReport::from(&report);
        assert_eq!(packed.unpack(), report);
        let json = serde_json::to_string(&packed).unwrap();
        assert_eq!(json, serde_json::to_string(&report).unwrap());
        assert_eq!(serde_json::from_str::<PackedReport>(&json).unwrap(), packed);
        assert_eq!(serde_json::from_value::<PackedReport>(serde_json::to_value(&report).unwrap()).unwrap(), packed);
    }
}
