//! The words of `keepalived.conf` with their lines.
//!
//! A directive is a line; one that ends with `{`, or is followed by it, has the directives up to `}` below it. `#` and `!` begin a
//! comment, quotes keep words together, `$NAME=value` at the beginning of a line defines what `$NAME` and `${NAME}`
//! stand for, `@id` before a directive keeps it for the instance of that id and `@^id` for all others.

use super::super::ledger::{Ledger, Lines, shown};
use std::collections::BTreeMap;

/// Directives inside one another at most; keepalived has four levels.
const DEEPEST: usize = 16;
/// Words of a line at most after definitions are put in.
const LONGEST: usize = 64 * 1024;

/// A directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) line: usize,
    /// Of the closing brace, or the line itself.
    pub(super) last: usize,
    /// The first is its name; never empty.
    pub(super) words: Vec<String>,
    pub(super) children: Vec<Directive>,
}

impl Directive {
    pub(super) fn name(&self) -> &str {
        &self.words[0]
    }

    /// A word, empty if there are fewer.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// What the line says.
    pub(super) fn head(&self) -> String {
        self.words.join(" ")
    }

    pub(super) fn lines(&self) -> Lines {
        Lines { from: self.line, to: self.last }
    }

    /// The first directive of a name below it.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name() == name)
    }
}

/// A word, or one of the braces outside quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
}

pub(super) fn parse(text: &str, id: Option<&str>, ledger: &mut Ledger) -> Vec<Directive> {
    // The sections that are open, the file itself first.
    let mut open: Vec<Vec<Directive>> = vec![Vec::new()];
    // Sections that are too deep: their braces are only counted.
    let mut too_deep = 0usize;
    let mut definitions = BTreeMap::new();
    let mut last = 0;
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        last = number;
        let lines = Lines::one(number);
        let Some(line) = condition(line, id, lines, ledger) else { continue };
        if let Some((name, value)) = definition(line) {
            if value.ends_with('\\') || value.starts_with('~') || value.contains("${_") {
                ledger.left(lines, line, "lbctl knows definitions of one line only: write it out");
            } else {
                definitions.insert(name.to_owned(), value.to_owned());
                ledger.mapped(number);
            }
            continue;
        }
        let line = substitute(line, &definitions, lines, ledger);
        let mut words: Vec<String> = Vec::new();
        for token in tokens(&line) {
            match token {
                Token::Word(word) => words.push(word),
                Token::Open if too_deep > 0 || open.len() > DEEPEST => {
                    ledger.left(lines, &words.join(" "), "too many braces inside one another");
                    too_deep += 1;
                    words.clear();
                }
                Token::Open => {
                    if !words.is_empty() {
                        push(&mut open, std::mem::take(&mut words), number);
                    }
                    // A brace on a line of its own belongs to the directive before.
                    let owner = open.last_mut().and_then(|section| section.last_mut());
                    if owner.is_none_or(|owner| !owner.children.is_empty() || owner.last > owner.line) {
                        ledger.left(lines, "{", "a brace that belongs to nothing");
                        too_deep += 1;
                    } else {
                        open.push(Vec::new());
                    }
                }
                Token::Close => {
                    if !words.is_empty() && too_deep == 0 {
                        push(&mut open, std::mem::take(&mut words), number);
                    }
                    words.clear();
                    if too_deep > 0 {
                        too_deep -= 1;
                        ledger.left(lines, "}", "the end of what was left out");
                    } else {
                        close(&mut open, number, ledger);
                    }
                }
            }
        }
        if !words.is_empty() {
            if too_deep > 0 {
                ledger.left(lines, &words.join(" "), "inside what was left out");
            } else {
                push(&mut open, words, number);
            }
        }
    }
    while open.len() > 1 {
        let section = open.pop().unwrap_or_default();
        if let Some(owner) = open.last_mut().and_then(|section| section.last_mut()) {
            ledger.differs(Lines::one(owner.line), &owner.head(), "its closing brace is missing");
            owner.children = section;
            owner.last = last;
        }
    }
    open.pop().unwrap_or_default()
}

fn push(open: &mut [Vec<Directive>], words: Vec<String>, line: usize) {
    if let Some(section) = open.last_mut() {
        section.push(Directive { line, last: line, words, children: Vec::new() });
    }
}

fn close(open: &mut Vec<Vec<Directive>>, line: usize, ledger: &mut Ledger) {
    if open.len() == 1 {
        return ledger.left(Lines::one(line), "}", "a brace that closes nothing");
    }
    let section = open.pop().unwrap_or_default();
    if let Some(owner) = open.last_mut().and_then(|section| section.last_mut()) {
        owner.children = section;
        owner.last = line;
        ledger.mapped(line);
    }
}

/// What stands behind `@id`; nothing if it is for another instance.
fn condition<'a>(line: &'a str, id: Option<&str>, lines: Lines, ledger: &mut Ledger) -> Option<&'a str> {
    let Some(rest) = line.trim_start().strip_prefix('@') else { return Some(line) };
    let (wanted, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let (not, wanted) = wanted.strip_prefix('^').map_or((false, wanted), |wanted| (true, wanted));
    if wanted.is_empty() || (id == Some(wanted)) != not {
        return Some(rest);
    }
    let mine = id.map_or("no --id is given".to_owned(), |id| format!("--id is {id}"));
    ledger.left(lines, line, format!("for another instance of keepalived: {mine}"));
    None
}

/// The name and value of `$NAME=value`.
fn definition(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.trim_start().strip_prefix('$')?.split_once('=')?;
    let name = name.trim_end();
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (name, value.split(['#', '!']).next().unwrap_or_default().trim()))
}

/// The line with what its `$NAME`s stand for.
fn substitute(
    line: &str,
    definitions: &BTreeMap<String, String>,
    lines: Lines,
    ledger: &mut Ledger,
) -> String {
    let mut made = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('$') {
        made.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let bare = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
        let (name, tail) = braced.unwrap_or((&after[..bare], &after[bare..]));
        match definitions.get(name) {
            Some(value) if made.len() < LONGEST => made.push_str(value),
            Some(_) => ledger.left(lines, &shown(line), "the line becomes too long"),
            None => {
                // A regular expression may end in one.
                if !name.is_empty() && !comment_before(line, after) {
                    ledger.differs(lines, &format!("${name}"), "not defined before: taken as it is written");
                }
                made.push('$');
                rest = after;
                continue;
            }
        }
        rest = tail;
    }
    made + rest
}

/// True if a comment began before the dollar sign that `after` follows.
fn comment_before(line: &str, after: &str) -> bool {
    line[..line.len() - after.len()].contains(['#', '!'])
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    let end = |word: &mut Option<String>, tokens: &mut Vec<Token>| {
        tokens.extend(word.take().map(Token::Word));
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            '"' => {
                quoted = !quoted;
                // Quotes around nothing are a word too.
                word.get_or_insert_default();
            }
            _ if quoted => word.get_or_insert_default().push(c),
            '#' | '!' => break,
            '{' => {
                end(&mut word, &mut tokens);
                tokens.push(Token::Open);
            }
            '}' => {
                end(&mut word, &mut tokens);
                tokens.push(Token::Close);
            }
            c if c.is_whitespace() => end(&mut word, &mut tokens),
            c => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut tokens);
    tokens
}
