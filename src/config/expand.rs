//! Environment variables in values: `${VAR}`, `${VAR:-default}`, `${VAR == 'x'}`,
//! `${VAR != OTHER}`, and `$$` for a dollar. Must not look at the process'
//! environment itself: it is passed in.

/// Where variables come from.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `text` with its variables replaced. An error says what is wrong with which
/// expression.
pub fn expand(text: &str, env: Environment<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| format!("{:?} has no closing }}", &rest[at..]))?;
            out.push_str(&value_of(&inner[..end], env)?);
            rest = &inner[end + 1..];
        } else {
            return Err(
                "a lone $ means nothing here: write ${NAME} for a variable, $$ for a dollar".to_owned()
            );
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the `}` is that closes an expression; one in quotes does not.
fn closing(inner: &str) -> Option<usize> {
    let mut quote = None;
    for (at, char) in inner.char_indices() {
        match quote {
            Some(open) if char == open => quote = None,
            Some(_) => {}
            None if char == '}' => return Some(at),
            // Quotes belong to comparisons; in a default they are plain text.
            None if matches!(char, '\'' | '"') && !inner[..at].contains(":-") => quote = Some(char),
            None => {}
        }
    }
    None
}

fn value_of(expression: &str, env: Environment<'_>) -> Result<String, String> {
    if let Some((name, default)) = expression.split_once(":-") {
        let value = env(name_of(name, expression)?).filter(|value| !value.is_empty());
        return Ok(value.unwrap_or_else(|| default.to_owned()));
    }
    for (operator, wanted) in [("==", true), ("!=", false)] {
        if let Some((left, right)) = expression.split_once(operator) {
            let left = env(name_of(left, expression)?).unwrap_or_default();
            let equal = left == operand(right.trim(), expression, env)?;
            return Ok((equal == wanted).to_string());
        }
    }
    let name = name_of(expression, expression)?;
    env(name).ok_or_else(|| {
        format!("the environment variable {name} is not set; set it, or give a default: ${{{name}:-default}}")
    })
}

fn operand(text: &str, expression: &str, env: Environment<'_>) -> Result<String, String> {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
            return Ok(inner.to_owned());
        }
    }
    Ok(env(name_of(text, expression)?).unwrap_or_default())
}

fn name_of<'a>(text: &'a str, expression: &str) -> Result<&'a str, String> {
    let name = text.trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.as_bytes()[0].is_ascii_digit() || !name.bytes().all(plain) {
        return Err(format!(
            "${{{expression}}} is not understood: write ${{NAME}}, ${{NAME:-default}} or ${{NAME == 'value'}}"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("a.example".to_owned()),
            "REGION" | "PRIMARY" => Some("ams".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn every_form_expands() {
        for (text, value) in [
            ("plain", "plain"),
            ("http://${HOST}:1", "http://a.example:1"),
            ("${NONE:-b}${EMPTY:-c}${HOST:-d}", "bca.example"),
            ("${NONE:-}", ""),
            ("${NONE:-it's}", "it's"),
            ("${REGION == 'ams'}", "true"),
            ("${REGION==\"lhr\"}", "false"),
            ("${REGION != 'lhr'}", "true"),
            ("${REGION == PRIMARY}", "true"),
            ("${NONE == ''}", "true"),
            ("${REGION == '}'}", "false"),
            ("pa$$word $${HOST}", "pa$word ${HOST}"),
            ("ü${HOST}ü", "üa.exampleü"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_unclear_is_refused() {
        for text in ["$HOST", "${NONE}", "${HOST", "${}", "${a b}", "${1}", "${REGION == a b}", "100$"] {
            assert!(expand(text, &env).is_err(), "{text}");
        }
        let said = expand("${BUCKET}", &env).expect_err("not set");
        assert!(said.contains("BUCKET") && said.contains(":-default"), "{said}");
    }
}
