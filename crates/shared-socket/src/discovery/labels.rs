//! Label selectors as kubectl takes them: `app=web,tier!=cache,canary,!legacy,zone in (a,b)`.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::bail;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// All of its terms must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(Vec<Term>);

impl Selector {
    /// Do all terms hold?
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Term::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Term::Exists(key) => labels.contains_key(key),
            Term::Missing(key) => !labels.contains_key(key),
        })
    }
}

/// At commas that are not in parentheses.
fn terms(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

fn is_value(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn set(key: &str, list: &str) -> Option<(String, Vec<String>)> {
    let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
    let values: Vec<String> = list.split(',').map(|v| v.trim().to_owned()).collect();
    (is_name(key) && values.iter().all(|v| is_value(v))).then(|| (key.to_owned(), values))
}

fn term(text: &str) -> Option<Term> {
    let text = text.trim();
    if let Some((key, list)) = text.split_once(" notin ") {
        return set(key.trim(), list).map(|(k, v)| Term::NotIn(k, v));
    }
    if let Some((key, list)) = text.split_once(" in ") {
        return set(key.trim(), list).map(|(k, v)| Term::In(k, v));
    }
    let (key, values, negative) = if let Some((key, value)) = text.split_once("!=") {
        (key, Some(value), true)
    } else if let Some((key, value)) = text.split_once('=') {
        (key, Some(value.strip_prefix('=').unwrap_or(value)), false)
    } else {
        match text.strip_prefix('!') {
            Some(key) => (key, None, true),
            None => (text, None, false),
        }
    };
    let key = key.trim();
    if !is_name(key) {
        return None;
    }
    let key = key.to_owned();
    Some(match (values.map(str::trim), negative) {
        (Some(value), _) if !is_value(value) => return None,
        (Some(value), true) => Term::NotIn(key, vec![value.to_owned()]),
        (Some(value), false) => Term::In(key, vec![value.to_owned()]),
        (None, true) => Term::Missing(key),
        (None, false) => Term::Exists(key),
    })
}

impl FromStr for Selector {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for part in terms(text) {
            let Some(term) = term(part) else {
                bail!(
                    "the selector {text:?} is not understood at {:?}; as with kubectl: app=web,tier!=cache,canary,!old,\
                     zone in (a,b)",
                    part.trim()
                );
            };
            found.push(term);
        }
        Ok(Self(found))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        selector.parse::<Selector>().unwrap().matches(&labels)
    }

    #[test]
    fn as_kubectl() {
        let web = [("app", "web"), ("tier", "front"), ("example.com/zone", "a")];
        for yes in [
            "app=web",
            "app==web",
            "app = web , tier",
            "tier!=cache",
            "other!=x",
            "!other",
            "example.com/zone in (a, b)",
            "tier notin (cache,back)",
            "missing notin (a)",
            "app in (web),!old",
        ] {
            assert!(matches(yes, &web), "{yes}");
        }
        for no in ["app=db", "other", "!app", "app!=web", "tier in (cache)", "tier notin (front)", "app=web,other"] {
            assert!(!matches(no, &web), "{no}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        for bad in ["", "=x", "app=web,", "a in b", "a in (b", "app=we b", "!", "a b", "in (a)"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "[a-z=!,() in\\PC]{0,40}") {
            let _ = text.parse::<Selector>();
        }

        #[test]
        fn one_label_is_found(key in "[a-z]{1,8}", value in "[a-z0-9]{0,8}") {
            let (is, is_not) = (format!("{key}={value}"), format!("{key}!={value}"));
            prop_assert!(matches(&is, &[(&key, &value)]));
            prop_assert!(!matches(&is_not, &[(&key, &value)]));
        }
    }
}
