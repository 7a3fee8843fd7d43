//! JSON that is held against a schema.

use jsonschema::Validator;
use serde_json::{Value, json};

/// A document of JSON Schema with a definition of each kind of answer.
pub struct Schema(Value);

impl Schema {
    /// Reads one.
    ///
    /// # Panics
    /// If it is no JSON.
    pub fn new(text: &str) -> Self {
        Self(serde_json::from_str(text).expect("the schema is JSON"))
    }

    /// The names of its definitions.
    pub fn names(&self) -> Vec<&str> {
        self.0["$defs"].as_object().into_iter().flat_map(|defs| defs.keys().map(String::as_str)).collect()
    }

    /// What is wrong with `value` as the answer `name`. A field that the schema does not name is one that nobody wrote down,
    /// and wrong as well, though readers have to bear it.
    ///
    /// # Panics
    /// If the definition cannot be used.
    pub fn wrong_with(&self, name: &str, value: &Value) -> Vec<String> {
        let errors = |error: jsonschema::ValidationError<'_>| format!("{} {error}", error.instance_path);
        self.validator(name).iter_errors(value).map(errors).collect()
    }

    fn validator(&self, name: &str) -> Validator {
        let mut defs = self.0["$defs"].clone();
        strict(&mut defs);
        let reference = format!("#/$defs/{}", name.replace(' ', "%20"));
        jsonschema::validator_for(&json!({ "$ref": reference, "$defs": defs })).expect("a schema")
    }
}

/// What the schema names is then all that there may be.
fn strict(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if object.get("properties").is_some_and(Value::is_object) {
                object.entry("additionalProperties").or_insert(false.into());
            }
            object.values_mut().for_each(strict);
        }
        Value::Array(values) => values.iter_mut().for_each(strict),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_unknown_fields_and_other_values_are_wrong() {
        let defs = json!({ "an answer": {
            "type": "object", "properties": { "v": { "const": 1 }, "rows": { "type": "array" } }, "required": ["v", "rows"],
        } });
        let schema = Schema::new(&json!({ "$defs": defs }).to_string());
        assert_eq!(schema.names(), ["an answer"]);
        for (value, fits) in [
            (json!({ "v": 1, "rows": [] }), true),
            (json!({ "v": 2, "rows": [] }), false),
            (json!({ "v": 1 }), false),
            (json!({ "v": 1, "rows": [], "colour": 3 }), false),
        ] {
            assert_eq!(schema.wrong_with("an answer", &value).is_empty(), fits, "{value}");
        }
    }
}
