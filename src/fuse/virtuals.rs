//! The files that are made up at reading: `<db>-pos`, `.primary`, `.lag`.

use std::time::Duration;

use crate::store::Role;
use crate::words::Pos;

/// The size of `<db>-pos`: `txid/checksum\n`.
pub(super) const POS_SIZE: u64 = 34;

/// The size that stat gives for `.lag`.
pub(super) const LAG_SIZE: u64 = 11;

/// What `<db>-pos` says.
pub(super) fn pos(pos: Pos) -> String {
    format!("{}/{}\n", pos.txid, pos.checksum)
}

/// What `.primary` says; `None` where it does not exist.
pub(super) fn primary(role: &Role) -> Option<String> {
    match role {
        Role::Replica { primary: Some(hostname) } => Some(format!("{hostname}\n")),
        Role::Replica { primary: None } | Role::Primary => None,
    }
}

/// What `.lag` says, in milliseconds: zero on the primary, the largest number on a
/// replica that never heard of its primary.
pub(super) fn lag(role: &Role, lag: Option<Duration>) -> String {
    let millis = match (role, lag) {
        (Role::Primary, _) => 0,
        (Role::Replica { .. }, None) => i32::MAX,
        (Role::Replica { .. }, Some(lag)) => i32::try_from(lag.as_millis()).unwrap_or(i32::MAX),
    };
    format!("{millis:+010}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_that_litefs_clients_read() {
        let text = pos(Pos::ZERO);
        assert_eq!(text.len() as u64, POS_SIZE);
        assert!(text.starts_with("0000000000000000/"), "{text:?}");
        assert!(text.ends_with('\n'));
        let replica = Role::Replica { primary: Some("host".to_owned()) };
        assert_eq!(primary(&replica).as_deref(), Some("host\n"));
        assert_eq!(primary(&Role::Primary), None);
        assert_eq!(lag(&Role::Primary, None), "+000000000\n");
        assert_eq!(lag(&replica, Some(Duration::from_millis(1234))), "+000001234\n");
        assert_eq!(lag(&replica, None), "+2147483647\n");
        assert_eq!(lag(&Role::Primary, None).len() as u64, LAG_SIZE);
    }
}
