//! Which requests read, write, or go past the proxy's rules. Must not look at more than
//! method and path.

use hyper::Method;

/// What a request is to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passed on as it is.
    Passthrough,
    /// May this node serve?
    Health,
    /// Where does this node stand? Other nodes' proxies ask it.
    Position,
    /// Answered by this node's application, once it has what the client has seen.
    Read,
    /// Answered by the primary's application.
    Write,
}

/// The paths that are special.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    passthrough: Vec<Glob>,
    always_forward: Vec<Glob>,
}

/// Where the proxy itself answers whether the node may serve.
pub const HEALTH: &str = "/litefs/health";
/// Where the proxy itself answers where the node stands.
pub const POSITION: &str = "/litefs/position";

impl Rules {
    /// Rules from patterns in which `*` stands for any characters.
    pub fn new(passthrough: &[String], always_forward: &[String]) -> Rules {
        let globs = |patterns: &[String]| patterns.iter().map(|pattern| Glob::new(pattern)).collect();
        Rules { passthrough: globs(passthrough), always_forward: globs(always_forward) }
    }

    /// What a request is.
    pub fn kind(&self, method: &Method, path: &str) -> Kind {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(path));
        let reads = method == Method::GET || method == Method::HEAD;
        if any(&self.passthrough) {
            Kind::Passthrough
        } else if reads && path == HEALTH {
            Kind::Health
        } else if reads && path == POSITION {
            Kind::Position
        } else if reads && !any(&self.always_forward) {
            Kind::Read
        } else {
            Kind::Write
        }
    }
}

/// A pattern for a whole path: its pieces between the stars.
#[derive(Clone, Debug)]
struct Glob(Vec<String>);

impl Glob {
    fn new(pattern: &str) -> Glob {
        Glob(pattern.split('*').map(str::to_owned).collect())
    }

    fn matches(&self, path: &str) -> bool {
        let [first, between @ .., last] = &self.0[..] else {
            return self.0.iter().all(|only| only == path);
        };
        let Some(mut rest) = path.strip_prefix(first.as_str()) else { return false };
        for piece in between {
            // The first place leaves the most for the pieces after it.
            let Some(at) = rest.find(piece.as_str()) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_the_whole_path_must_match() {
        for (pattern, path, matches) in [
            ("/a", "/a", true),
            ("/a", "/a/b", false),
            ("*.png", "/x/y.png", true),
            ("*.png", "/x/y.png.txt", false),
            ("/static/*", "/static/", true),
            ("/static/*", "/statics", false),
            ("/a/*/c/*.js", "/a/b/c/d/c/e.js", true),
            ("/a/*/c", "/a/c", false),
            ("/aa*aa", "/aaa", false),
            ("*", "", true),
            ("", "", true),
            ("", "/", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(path), matches, "{pattern} {path}");
        }
    }

    #[test]
    fn get_and_head_read_and_everything_else_writes() {
        let rules = Rules::new(&["/assets/*".to_owned()], &["/login*".to_owned()]);
        for (method, path, kind) in [
            (Method::GET, "/", Kind::Read),
            (Method::HEAD, "/", Kind::Read),
            (Method::POST, "/", Kind::Write),
            (Method::OPTIONS, "/", Kind::Write),
            (Method::GET, "/login/x", Kind::Write),
            (Method::POST, "/assets/x", Kind::Passthrough),
            (Method::GET, HEALTH, Kind::Health),
            (Method::POST, HEALTH, Kind::Write),
            (Method::GET, POSITION, Kind::Position),
        ] {
            assert_eq!(rules.kind(&method, path), kind, "{method} {path}");
        }
    }
}
