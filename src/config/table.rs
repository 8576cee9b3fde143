//! A section of the file, read key by key: every key has a type, and one that
//! nobody asked for is a fault with the nearest known name. Must not know which
//! keys there are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Fault;
use super::expand::{Environment, expand};
use super::values;

type Entry<'t> = (&'t str, usize, &'t Spanned<DeValue<'t>>);

/// Where each key of the file stands, by its full name.
#[derive(Debug, Default)]
pub(super) struct Places(RefCell<BTreeMap<String, usize>>);

impl Places {
    /// Where `key` stands, or the section it would be in, or the file's beginning.
    pub fn of(&self, key: &str) -> usize {
        let places = self.0.borrow();
        let mut name = key;
        loop {
            match (places.get(name), name.rsplit_once('.')) {
                (Some(at), _) => return *at,
                (None, Some((section, _))) => name = section,
                (None, None) => return 0,
            }
        }
    }

    /// Whether the file has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.0.borrow().contains_key(key)
    }
}

/// What reading needs beside the text.
#[derive(Clone, Copy)]
pub(super) struct Context<'t> {
    /// Without an environment, values are taken as they are.
    pub env: Option<Environment<'t>>,
    pub places: &'t Places,
}

/// A section of which keys are taken.
pub(super) struct Section<'t> {
    name: String,
    at: usize,
    left: Vec<Entry<'t>>,
    known: Vec<&'static str>,
    context: Context<'t>,
}

impl<'t> Section<'t> {
    /// The section `name` (empty for the top level) at byte `at`.
    pub fn new(name: &str, at: usize, table: &'t DeTable<'t>, context: Context<'t>) -> Section<'t> {
        let left: Vec<_> =
            table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span().start, value)).collect();
        let section = Section { name: name.to_owned(), at, left, known: Vec::new(), context };
        let places = section.left.iter().map(|(key, at, _)| (section.full_name(key), *at));
        context.places.0.borrow_mut().extend(places);
        section
    }

    /// Where it stands.
    pub fn at(&self) -> usize {
        self.at
    }

    fn take(&mut self, key: &'static str) -> Option<Entry<'t>> {
        self.known.push(key);
        let at = self.left.iter().position(|entry| entry.0 == key)?;
        Some(self.left.remove(at))
    }

    fn full_name(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn wrong(&self, entry: Entry<'_>, wanted: &str) -> Fault {
        let (key, at, value) = entry;
        Fault::new(at, format!("{} must be {wanted}, not {}", self.full_name(key), kind_of(value.get_ref())))
    }

    fn text_of(&self, key: &str, at: usize, text: &str) -> Result<String, Fault> {
        match self.context.env {
            Some(env) => {
                expand(text, env).map_err(|why| Fault::new(at, format!("{}: {why}", self.full_name(key))))
            }
            None => Ok(text.to_owned()),
        }
    }

    /// A fault of this section's `key`.
    pub fn fault(&self, key: &str, text: impl Into<String>) -> Fault {
        Fault::new(self.context.places.of(&self.full_name(key)), text)
    }

    /// A text, variables replaced.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, Fault> {
        let Some(entry) = self.take(key) else {
            return Ok(None);
        };
        let text = entry.2.get_ref().as_str().ok_or_else(|| self.wrong(entry, "a text in quotes"))?;
        Ok(Some(self.text_of(key, entry.1, text)?))
    }

    /// A text that must not be empty; an empty one (an empty variable, mostly) is
    /// a fault.
    pub fn full_text(&mut self, key: &'static str) -> Result<Option<String>, Fault> {
        match self.text(key)? {
            Some(text) if text.is_empty() => {
                Err(self
                    .fault(key, format!("{} is empty; give it a value or leave it out", self.full_name(key))))
            }
            text => Ok(text),
        }
    }

    fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Fault> {
        let Some(text) = self.full_text(key)? else {
            return Ok(None);
        };
        parse(&text).map(Some).map_err(|why| self.fault(key, format!("{}: {why}", self.full_name(key))))
    }

    /// A duration.
    pub fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, Fault> {
        self.parsed(key, values::duration)
    }

    /// A size in bytes; a bare number counts bytes.
    pub fn size(&mut self, key: &'static str) -> Result<Option<u64>, Fault> {
        if let Some(number) = self.bare_number(key)? {
            return Ok(Some(number));
        }
        self.known.pop();
        self.parsed(key, values::size)
    }

    /// An address to listen on.
    pub fn listen_addr(&mut self, key: &'static str) -> Result<Option<SocketAddr>, Fault> {
        self.parsed(key, values::listen_addr)
    }

    /// A whole number; as a text too, so that it can come from a variable.
    pub fn number(&mut self, key: &'static str) -> Result<Option<u64>, Fault> {
        if let Some(number) = self.bare_number(key)? {
            return Ok(Some(number));
        }
        self.known.pop();
        self.parsed(key, |text| text.parse().map_err(|_| format!("{text:?} is not a whole number")))
    }

    /// The number at `key` if it is written as one; anything else stays there.
    fn bare_number(&mut self, key: &'static str) -> Result<Option<u64>, Fault> {
        self.known.push(key);
        let Some(entry) = self.left.iter().copied().find(|entry| entry.0 == key) else {
            return Ok(None);
        };
        let Some(number) = entry.2.get_ref().as_integer() else {
            return Ok(None);
        };
        let value = u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| {
            Fault::new(entry.1, format!("{} must not be negative or that large", self.full_name(key)))
        })?;
        self.left.retain(|other| other.0 != key);
        Ok(Some(value))
    }

    /// Yes or no; a text too, if its variables make it `true` or `false`.
    pub fn yes(&mut self, key: &'static str) -> Result<Option<bool>, Fault> {
        let Some(entry) = self.take(key) else {
            return Ok(None);
        };
        let (_, at, value) = entry;
        if let Some(value) = value.get_ref().as_bool() {
            return Ok(Some(value));
        }
        let wanted = "true or false, or \"${VAR == 'value'}\"";
        let text = value.get_ref().as_str().ok_or_else(|| self.wrong(entry, wanted))?;
        match self.text_of(key, at, text)?.as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            other => Err(Fault::new(at, format!("{} must be {wanted}, not {other:?}", self.full_name(key)))),
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, Fault> {
        self.parsed(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("{text:?} is not one of {}", all.join(", "))
            })
        })
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>, Fault> {
        let Some(entry) = self.take(key) else {
            return Ok(None);
        };
        let wanted = "a list of texts";
        let list = entry.2.get_ref().as_array().ok_or_else(|| self.wrong(entry, wanted))?;
        let texts = list.iter().map(|item| {
            let text = item.get_ref().as_str().ok_or_else(|| self.wrong(entry, wanted))?;
            self.text_of(key, item.span().start, text)
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Whether the value at `key` is a list.
    pub fn is_list(&self, key: &str) -> bool {
        self.left.iter().any(|entry| entry.0 == key && entry.2.get_ref().is_array())
    }

    /// A section below this one.
    pub fn section(&mut self, key: &'static str) -> Result<Option<Section<'t>>, Fault> {
        let Some(entry) = self.take(key) else {
            return Ok(None);
        };
        let wanted = format!("a section: [{}]", self.full_name(key));
        let table = entry.2.get_ref().as_table().ok_or_else(|| self.wrong(entry, &wanted))?;
        Ok(Some(Section::new(&self.full_name(key), entry.1, table, self.context)))
    }

    /// An empty section of that name, for its defaults.
    pub fn empty(&self, key: &str) -> Section<'t> {
        let name = self.full_name(key);
        Section { name, at: self.at, left: Vec::new(), known: Vec::new(), context: self.context }
    }

    /// Sections of the same name, `[[key]]`.
    pub fn sections(&mut self, key: &'static str) -> Result<Vec<Section<'t>>, Fault> {
        let Some(entry) = self.take(key) else {
            return Ok(Vec::new());
        };
        let wanted = format!("written as [[{}]]", self.full_name(key));
        let list = entry.2.get_ref().as_array().ok_or_else(|| self.wrong(entry, &wanted))?;
        let each = list.iter().map(|item| {
            let table = item.get_ref().as_table().ok_or_else(|| self.wrong(entry, &wanted))?;
            Ok(Section::new(&self.full_name(key), item.span().start, table, self.context))
        });
        each.collect()
    }

    /// A fault if a key is left that nobody asked for.
    pub fn end(mut self) -> Result<(), Fault> {
        self.left.sort_by_key(|entry| entry.1);
        let Some(&(key, at, _)) = self.left.first() else {
            return Ok(());
        };
        let what = if self.name.is_empty() { "section or key" } else { "key" };
        let mut text = format!("unknown {what} {}", self.full_name(key));
        match nearest(key, &self.known) {
            Some(near) => text.push_str(&format!("; did you mean {}?", self.full_name(near))),
            None => text.push_str(&format!("; known are {}", self.known.join(", "))),
        }
        Err(Fault::new(at, text))
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// The known name that `key` most likely is a misspelling of.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let key = key.to_ascii_lowercase().replace('_', "-");
    let near = known.iter().map(|name| (distance(&key, name), *name)).min()?;
    let most = 1 + key.chars().count() / 3;
    (near.0 <= most).then_some(near.1)
}

/// How many letters to insert, drop or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (to, right) in b.iter().enumerate() {
            let cost = diagonal + usize::from(left != *right);
            diagonal = row[to + 1];
            row[to + 1] = cost.min(diagonal + 1).min(row[to] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_find_the_nearest() {
        let known = ["url", "endpoint", "sync-interval", "retention"];
        assert_eq!(nearest("sync_interval", &known), Some("sync-interval"));
        assert_eq!(nearest("endpiont", &known), Some("endpoint"));
        assert_eq!(nearest("uri", &known), Some("url"));
        assert_eq!(nearest("bucket", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
