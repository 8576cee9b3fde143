//! Splits a command line into words as a shell would, quotes and backslashes
//! only: no shell runs it. Must not expand anything.

/// A command line that cannot be split, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a command: {why}")]
pub struct BadCommand {
    /// The text.
    pub text: String,
    /// What is wrong with it and what to do.
    pub why: String,
}

/// Words with a meaning in a shell, which there is none.
const OPERATORS: [&str; 10] = ["|", "||", "&", "&&", ";", ">", ">>", "<", "2>", "2>&1"];

/// The words of a command line.
pub fn split(text: &str) -> Result<Vec<String>, BadCommand> {
    let bad = |why: String| BadCommand { text: text.to_owned(), why };
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut bare = true;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\'' | '"' => {
                bare = false;
                quoted(char, &mut chars, word.get_or_insert_default())
                    .ok_or_else(|| bad(format!("a {char} is not closed")))?;
            }
            '\\' => {
                bare = false;
                let next = chars.next().ok_or_else(|| bad("it ends with a backslash".to_owned()))?;
                word.get_or_insert_default().push(next);
            }
            space if space.is_whitespace() => {
                end(&mut words, word.take(), bare).map_err(bad)?;
                bare = true;
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    end(&mut words, word, bare).map_err(bad)?;
    if words.first().is_none_or(String::is_empty) {
        Err(bad("it names no program".to_owned()))
    } else {
        Ok(words)
    }
}

/// Reads up to the closing quote; `None` if there is none. In double quotes a
/// backslash escapes itself and the quote; in single quotes nothing does.
fn quoted(quote: char, chars: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        let char = chars.next()?;
        if char == quote {
            return Some(());
        }
        if char == '\\' && quote == '"' {
            match chars.next()? {
                next @ ('"' | '\\' | '$' | '`') => word.push(next),
                next => word.extend(['\\', next]),
            }
        } else {
            word.push(char);
        }
    }
}

fn end(words: &mut Vec<String>, word: Option<String>, bare: bool) -> Result<(), String> {
    if let Some(word) = word {
        if bare && OPERATORS.contains(&word.as_str()) {
            return Err(format!(
                "no shell runs it, so {word:?} has no meaning; write cmd = [\"sh\", \"-c\", \"…\"]"
            ));
        }
        words.push(word);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_as_in_a_shell() {
        for (text, words) in [
            ("app", vec!["app"]),
            ("  app  -p 80 ", vec!["app", "-p", "80"]),
            ("app 'a b' \"c d\"", vec!["app", "a b", "c d"]),
            (r#"app a\ b "say \"hi\" \n" '' x'y'z"#, vec!["app", "a b", r#"say "hi" \n"#, "", "xyz"]),
            ("sh -c 'a && b | c'", vec!["sh", "-c", "a && b | c"]),
            ("app '&&'", vec!["app", "&&"]),
        ] {
            assert_eq!(split(text), Ok(words.into_iter().map(str::to_owned).collect()), "{text}");
        }
    }

    #[test]
    fn what_only_a_shell_understands_is_refused_with_the_remedy() {
        for text in ["", "   ", "app 'open", "app \\", "a && b", "a | b", "a > b", "''"] {
            assert!(split(text).is_err(), "{text:?}");
        }
        let said = split("a && b").expect_err("an operator").to_string();
        assert!(said.contains("sh"), "{said}");
    }
}
