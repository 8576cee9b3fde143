//! The name of a change set's file. Must not touch files.

use crate::words::Txid;

/// The name of the file that holds transactions `min` to `max`:
/// `<min as 16 hexadecimal digits>-<max>.ltx`.
pub fn format_name(min: Txid, max: Txid) -> String {
    format!("{min}-{max}.ltx")
}

/// The transactions that a file of this name holds; `None` if it is not the name
/// of a change set exactly as `format_name` writes it.
pub fn parse_name(name: &str) -> Option<(Txid, Txid)> {
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    let (min, max) = (hex16(min)?, hex16(max)?);
    (min != Txid::ZERO && min <= max).then_some((min, max))
}

fn hex16(text: &str) -> Option<Txid> {
    let canonical = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_name_is_parsed() {
        let name = format_name(Txid::new(1), Txid::new(0xabc));
        assert_eq!(name, "0000000000000001-0000000000000abc.ltx");
        assert_eq!(parse_name(&name), Some((Txid::new(1), Txid::new(0xabc))));
        for bad in [
            "",
            ".ltx",
            "1-2.ltx",
            "0000000000000001-0000000000000ABC.ltx",
            "0000000000000001-0000000000000abc.ltx.tmp",
            "0000000000000000-0000000000000001.ltx",
            "0000000000000002-0000000000000001.ltx",
            "000000000000000é-0000000000000001.ltx",
        ] {
            assert_eq!(parse_name(bad), None, "{bad:?}");
        }
    }
}
