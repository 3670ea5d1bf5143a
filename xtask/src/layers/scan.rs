//! Finds the paths a Rust source mentions: enough of the syntax to tell `use a::{b, c::d};` and `a::b()` from
//! comments, strings and the rest. Macros are read like any other code.

use std::iter::Peekable;
use std::str::Chars;

/// A path found in a source, resolved as far as its text allows.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    pub line: u32,
    /// The module it stands in.
    pub from: Vec<String>,
    /// With `crate`, `self` and `super` resolved.
    pub to: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Ident(String),
    PathSep,
    Punct(char),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    line: u32,
}

/// All paths of a file that holds the given module, except in parts compiled for tests only.
pub fn references(text: &str, module: &[String]) -> Vec<Reference> {
    let tokens = tokens(text);
    let mut scan = Scan { tokens: &tokens, module: module.to_vec(), open: Vec::new(), found: Vec::new() };
    let mut at = 0;
    while at < tokens.len() {
        at = scan.step(at);
    }
    scan.found
}

/// Words that may stand before a `::` without being the start of a path.
const NO_PATH: [&str; 14] = [
    "use", "as", "in", "if", "else", "match", "while", "return", "break", "move", "mut", "dyn", "impl",
    "where",
];

struct Scan<'a> {
    tokens: &'a [Token],
    /// The module at this point, inline modules included.
    module: Vec<String>,
    /// For every open brace: whether it began an inline module.
    open: Vec<bool>,
    found: Vec<Reference>,
}

impl Scan<'_> {
    fn kind(&self, at: usize) -> Option<&Kind> {
        self.tokens.get(at).map(|token| &token.kind)
    }

    fn is(&self, at: usize, punct: char) -> bool {
        self.kind(at) == Some(&Kind::Punct(punct))
    }

    fn ident(&self, at: usize) -> Option<&str> {
        match self.kind(at)? {
            Kind::Ident(name) => Some(name),
            Kind::PathSep | Kind::Punct(_) => None,
        }
    }

    /// Reads what begins here and returns where it ends.
    fn step(&mut self, at: usize) -> usize {
        if self.is(at, '#') && self.is(at + 1, '[') {
            let end = self.skip_group(at + 1);
            return if self.is_test_attribute(at + 2, end) { self.skip_item(end) } else { end };
        }
        if self.is(at, '{') {
            self.open.push(false);
        } else if self.is(at, '}') {
            if self.open.pop() == Some(true) {
                self.module.pop();
            }
        } else if self.ident(at) == Some("mod")
            && let Some(name) = self.ident(at + 1)
            && self.is(at + 2, '{')
        {
            self.module.push(name.to_owned());
            self.open.push(true);
            return at + 3;
        } else if self.ident(at).is_some() {
            return self.path(at);
        }
        at + 1
    }

    /// A path that begins here, or just a word.
    fn path(&mut self, at: usize) -> usize {
        // A leading `::` changes nothing but where the word before stands.
        let leading = at >= 1 && self.kind(at - 1) == Some(&Kind::PathSep);
        let previous =
            at.checked_sub(1 + usize::from(leading)).and_then(|at| self.ident(at)).unwrap_or_default();
        let is_path = self.kind(at + 1) == Some(&Kind::PathSep)
            && !NO_PATH.contains(&self.ident(at).unwrap_or_default());
        // `pub(in crate::x)` restricts, it imports nothing.
        let restricts = previous == "in" && at >= 2 && self.is(at - 2, '(');
        if restricts || !(is_path || previous == "use") {
            return at + 1;
        }
        self.tree(at, &[])
    }

    /// One tree of a `use`, or a plain path; returns where it ends.
    fn tree(&mut self, mut at: usize, prefix: &[String]) -> usize {
        let mut path = prefix.to_vec();
        let line = self.tokens.get(at).map_or(0, |token| token.line);
        while let Some(name) = self.ident(at) {
            if name != "self" || path.is_empty() {
                path.push(name.to_owned());
            }
            at += 1;
            if self.kind(at) != Some(&Kind::PathSep) {
                self.note(line, &path);
                return at;
            }
            at += 1;
        }
        if !self.is(at, '{') {
            // `::*`, or the `::<` of a call.
            self.note(line, &path);
            return at;
        }
        at += 1;
        while at < self.tokens.len() && !self.is(at, '}') {
            // `as name` and commas lie between the trees of a group.
            if self.ident(at) == Some("as") {
                at += 2;
            } else if self.ident(at).is_some() || self.is(at, '{') {
                at = self.tree(at, &path).max(at + 1);
            } else {
                at += 1;
            }
        }
        at + 1
    }

    fn note(&mut self, line: u32, path: &[String]) {
        let to = match path.split_first() {
            Some((first, rest)) if first == "crate" => {
                self.module.iter().take(1).chain(rest).cloned().collect()
            }
            Some((first, rest)) if first == "self" => self.module.iter().chain(rest).cloned().collect(),
            Some((first, _)) if first == "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                let keep = self.module.len().saturating_sub(up);
                self.module.iter().take(keep).chain(&path[up..]).cloned().collect()
            }
            _ => path.to_vec(),
        };
        self.found.push(Reference { line, from: self.module.clone(), to });
    }

    /// `cfg(test)`, also among others, but not `cfg(not(test))`.
    fn is_test_attribute(&self, from: usize, to: usize) -> bool {
        let has = |word: &str| (from..to).any(|at| self.ident(at) == Some(word));
        self.ident(from) == Some("cfg") && has("test") && !has("not")
    }

    /// From an opening bracket to behind the closing one.
    fn skip_group(&self, at: usize) -> usize {
        let mut depth = 0_usize;
        for end in at..self.tokens.len() {
            match self.kind(end) {
                Some(Kind::Punct('(' | '[' | '{')) => depth += 1,
                Some(Kind::Punct(')' | ']' | '}')) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return end + 1;
                    }
                }
                _ => {}
            }
        }
        self.tokens.len()
    }

    /// To behind the item that an attribute belongs to: its `;` or its braces.
    fn skip_item(&self, mut at: usize) -> usize {
        let mut braces_end_it = true;
        while at < self.tokens.len() {
            match self.kind(at) {
                Some(Kind::Ident(word)) if word == "use" => braces_end_it = false,
                Some(Kind::Punct(';' | ',')) => return at + 1,
                // The end of what the item stands in.
                Some(Kind::Punct('}' | ')' | ']')) => return at,
                Some(Kind::Punct('{')) if braces_end_it => return self.skip_group(at),
                Some(Kind::Punct('(' | '[' | '{')) => {
                    at = self.skip_group(at);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        at
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { chars: text.chars().peekable(), line: 1, tokens: Vec::new() };
    while lexer.next_token() {}
    lexer.tokens
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    line: u32,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn eat(&mut self, wanted: char) -> bool {
        let eaten = self.chars.peek() == Some(&wanted);
        if eaten {
            self.bump();
        }
        eaten
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line });
    }

    /// Reads a token or something that is none; false at the end.
    fn next_token(&mut self) -> bool {
        let Some(c) = self.bump() else { return false };
        match c {
            '/' if self.eat('/') => while self.bump().is_some_and(|c| c != '\n') {},
            '/' if self.eat('*') => self.block_comment(),
            '"' => self.string(),
            '\'' => self.quote(),
            ':' if self.eat(':') => self.push(Kind::PathSep),
            c if c == '_' || c.is_alphabetic() => self.word(c),
            c if c.is_ascii_digit() => {
                // Digits and suffix in one, so that `1u8` yields no word.
                while self.chars.next_if(|c| *c == '_' || c.is_alphanumeric()).is_some() {}
            }
            c if c.is_whitespace() => {}
            c => self.push(Kind::Punct(c)),
        }
        true
    }

    fn block_comment(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            match self.bump() {
                Some('/') if self.eat('*') => depth += 1,
                Some('*') if self.eat('/') => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    fn string(&mut self) {
        while let Some(c) = self.bump() {
            match c {
                '"' => return,
                '\\' => {
                    self.bump();
                }
                _ => {}
            }
        }
    }

    /// The rest of `r##"..."##`, from the hashes or the quote on; false if it is none.
    fn raw_string(&mut self) -> bool {
        let mut hashes = 0;
        while self.eat('#') {
            hashes += 1;
        }
        if !self.eat('"') {
            return false;
        }
        while let Some(c) = self.bump() {
            if c == '"' && (0..hashes).all(|_| self.eat('#')) {
                break;
            }
        }
        true
    }

    /// A character in quotes or a lifetime.
    fn quote(&mut self) {
        match self.bump() {
            Some('\\') => {
                self.bump();
                while self.bump().is_some_and(|c| c != '\'') {}
            }
            Some(c) if !self.eat('\'') && (c == '_' || c.is_alphabetic()) => {
                while self.chars.next_if(|c| *c == '_' || c.is_alphanumeric()).is_some() {}
            }
            Some(_) | None => {}
        }
    }

    fn word(&mut self, first: char) {
        let mut word = String::from(first);
        while let Some(c) = self.chars.next_if(|c| *c == '_' || c.is_alphanumeric()) {
            word.push(c);
        }
        match (word.as_str(), self.chars.peek()) {
            ("b" | "c", Some('"')) => {
                self.bump();
                self.string();
            }
            ("b", Some('\'')) => {
                self.bump();
                self.quote();
            }
            // Raw identifiers come here too: `r#use` is then the next word.
            ("r" | "br" | "cr", Some('"' | '#')) => {
                self.raw_string();
            }
            _ => self.push(Kind::Ident(word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let module = ["k".to_owned(), "m".to_owned()];
        references(text, &module).into_iter().map(|found| found.to.join("::")).collect()
    }

    #[test]
    fn uses_are_taken_apart() {
        assert_eq!(
            paths("use a::{self, b as c, d::{e, f::*}, g};"),
            ["a", "a::b", "a::d::e", "a::d::f", "a::g"]
        );
        assert_eq!(paths("use crate::x; use self::y; use super::super::super::z;"), ["k::x", "k::m::y", "z"]);
        assert_eq!(paths("use a::b as c;\nfn f() { d::e(); }"), ["a::b", "d::e"]);
    }

    #[test]
    fn expressions_and_types_count() {
        assert_eq!(
            paths("fn f(x: &a::B<c::D>) -> e::F { g::h::<i::J>(x.k) }"),
            ["a::B", "c::D", "e::F", "g::h", "i::J"]
        );
        assert_eq!(paths("let p = a::S { b: crate::c::D };"), ["a::S", "k::c::D"]);
    }

    #[test]
    fn what_only_looks_like_code_does_not_count() {
        let text = r####"
            // a::b
            /* c::d /* nested */ e::f */
            const S: &str = "g::h \" i::j";
            const R: &str = r##"k::l "# m::n"##;
            const C: (char, u8) = ('"', b'\'');
            fn f<'a>(x: &'a o::P) {}
        "####;
        assert_eq!(paths(text), ["o::P"]);
    }

    #[test]
    fn parts_for_tests_are_skipped() {
        let text = "#[cfg(test)] use a::{b, c}; use d::e; #[cfg(test)] mod t { use f::g; } use h::i;";
        assert_eq!(paths(text), ["d::e", "h::i"]);
        assert_eq!(paths("#[cfg(all(test, unix))] fn f() { a::b() } fn g() { c::d() }"), ["c::d"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "([a-z:{}()\\[\\]'\"#/*;, \\\\\n]|use |mod |::|cfg\\(test\\)){0,60}") {
            let _ = paths(&text);
        }

        /// A flat tree of names comes back as it was written.
        #[test]
        fn a_group_is_the_sum_of_its_parts(
            head in "p[a-z]{1,5}",
            leaves in prop::collection::vec("x[a-z]{1,5}(::y[a-z]{1,5}){0,2}", 1..5),
        ) {
            let text = format!("use {head}::{{{}}};", leaves.join(", "));
            let expected: Vec<String> = leaves.iter().map(|leaf| format!("{head}::{leaf}")).collect();
            prop_assert_eq!(paths(&text), expected);
        }
    }
}
