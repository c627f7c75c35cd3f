//! SQL, cut into what PostgreSQL's lexer makes of it, as far as it matters where words, strings and commands begin and end
//! (PostgreSQL documentation, "Lexical Structure").

/// A place in a text: cheap to copy, to look ahead.
#[derive(Clone)]
pub(super) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
    /// A backslash escapes in every string.
    escapes: bool,
}

/// What a text is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or name.
    Word(&'a [u8]),
    /// What stands between the quotes of a name.
    Quoted(&'a [u8]),
    /// What stands between the quotes of a string.
    Text(&'a [u8]),
    /// Anything else, byte by byte.
    Symbol(u8),
}

impl<'a> Token<'a> {
    /// It is this keyword, given in lower case.
    pub fn is(self, keyword: &[u8]) -> bool {
        matches!(self, Token::Word(word) if is_word(word, keyword))
    }

    /// As a name.
    pub fn name(self) -> Option<&'a [u8]> {
        match self {
            Token::Word(name) | Token::Quoted(name) => Some(name),
            Token::Text(_) | Token::Symbol(_) => None,
        }
    }
}

impl<'a> Tokens<'a> {
    pub fn new(text: &'a [u8], escapes: bool) -> Self {
        Self { text, at: 0, escapes }
    }

    /// Goes on behind the end of a command. False: that was the last.
    pub fn next_statement(&mut self) -> bool {
        while self.next().is_some() {}
        self.at += 1;
        self.at < self.text.len()
    }

    /// The next token is this keyword: then it is taken.
    pub fn accept(&mut self, keyword: &[u8]) -> bool {
        let found = self.clone().next().is_some_and(|token| token.is(keyword));
        if found {
            self.next();
        }
        found
    }

    /// The next token is this symbol: then it is taken.
    pub fn accept_symbol(&mut self, symbol: u8) -> bool {
        let found = self.clone().next() == Some(Token::Symbol(symbol));
        if found {
            self.next();
        }
        found
    }

    /// A word from here on, or a string or quoted name that it is the prefix of.
    fn word(&mut self) -> Token<'a> {
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|&byte| !is_word_byte(byte)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(length);
        match (word, behind) {
            (b"e" | b"E", [b'\'', ..]) => {
                self.at += 2;
                Token::Text(self.until_quote(b'\'', true))
            }
            (b"b" | b"B" | b"x" | b"X" | b"n" | b"N", [b'\'', ..]) => {
                self.at += 2;
                Token::Text(self.until_quote(b'\'', false))
            }
            (b"u" | b"U", [b'&', b'\'', ..]) => {
                self.at += 3;
                Token::Text(self.until_quote(b'\'', false))
            }
            (b"u" | b"U", [b'&', b'"', ..]) => {
                self.at += 3;
                Token::Quoted(self.until_quote(b'"', false))
            }
            _ => {
                self.at += length;
                Token::Word(word)
            }
        }
    }

    /// What stands up to the closing quote; doubled ones are part of it. Goes behind it.
    fn until_quote(&mut self, quote: u8, escapes: bool) -> &'a [u8] {
        let from = self.at;
        while let Some(&byte) = self.text.get(self.at) {
            let next = self.text.get(self.at + 1).copied();
            match byte {
                b'\\' if escapes => self.at += 2,
                byte if byte == quote && next == Some(quote) => self.at += 2,
                byte if byte == quote => {
                    self.at += 1;
                    return &self.text[from..self.at - 1];
                }
                _ => self.at += 1,
            }
        }
        self.at = self.text.len();
        &self.text[from..]
    }

    /// A string between dollars, if here is one: `$$ ... $$`, `$tag$ ... $tag$`.
    fn dollars(&mut self) -> Option<Token<'a>> {
        let rest = &self.text[self.at..];
        let tag = 1 + rest[1..].iter().position(|&byte| byte == b'$' || !is_word_byte(byte))?;
        if rest[tag] != b'$' || rest[1].is_ascii_digit() {
            return None;
        }
        let (mark, body) = rest.split_at(tag + 1);
        let end = body.windows(mark.len()).position(|window| window == mark);
        let body = &body[..end.unwrap_or(body.len())];
        self.at = (self.at + 2 * mark.len() + body.len()).min(self.text.len());
        Some(Token::Text(body))
    }

    /// Goes behind space and comments.
    fn skip_space(&mut self) {
        loop {
            match &self.text[self.at.min(self.text.len())..] {
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, ..] => self.at += 1,
                [b'-', b'-', rest @ ..] => {
                    let line = rest.iter().position(|&byte| matches!(byte, b'\n' | b'\r'));
                    self.at += 2 + line.unwrap_or(rest.len());
                }
                [b'/', b'*', ..] => self.skip_comment(),
                _ => return,
            }
        }
    }

    /// Comments nest.
    fn skip_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match &self.text[self.at..] {
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.at += 2;
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                [] => return,
                _ => self.at += 1,
            }
        }
    }
}

/// The tokens of one command: it ends in front of a semicolon.
impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_space();
        let token = match *self.text.get(self.at)? {
            b';' => return None,
            b'\'' => {
                self.at += 1;
                Token::Text(self.until_quote(b'\'', self.escapes))
            }
            b'"' => {
                self.at += 1;
                Token::Quoted(self.until_quote(b'"', false))
            }
            b'$' => self.dollars().unwrap_or_else(|| {
                self.at += 1;
                Token::Symbol(b'$')
            }),
            byte if is_word_byte(byte) && !byte.is_ascii_digit() => self.word(),
            byte => {
                self.at += 1;
                Token::Symbol(byte)
            }
        };
        Some(token)
    }
}

/// Whether this is that word, given in lower case.
#[inline]
pub(super) fn is_word(word: &[u8], lower: &[u8]) -> bool {
    word.eq_ignore_ascii_case(lower)
}

/// What a word may be made of, behind its first byte.
#[inline]
pub(super) fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$') || byte >= 0x80
}
