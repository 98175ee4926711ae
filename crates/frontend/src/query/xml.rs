//! Writes XML: elements and text, escaped.

use std::fmt::Write;

/// A document under construction. Elements are closed in the reverse order of their opening.
#[derive(Debug, Default)]
pub(crate) struct Xml {
    out: String,
    open: Vec<String>,
}

impl Xml {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Opens an element that holds others.
    pub(crate) fn open(&mut self, name: &str) {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push('>');
        self.open.push(name.to_owned());
    }

    /// Opens the outermost element.
    pub(crate) fn open_with_namespace(&mut self, name: &str, namespace: &str) {
        self.out.push('<');
        self.out.push_str(name);
        self.out.push_str(" xmlns=\"");
        self.escaped(namespace);
        self.out.push_str("\">");
        self.open.push(name.to_owned());
    }

    /// Closes the innermost open element.
    pub(crate) fn close(&mut self) {
        if let Some(name) = self.open.pop() {
            self.out.push_str("</");
            self.out.push_str(&name);
            self.out.push('>');
        }
    }

    /// An element with text in it.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        self.escaped(text);
        self.close();
    }

    /// The document.
    pub(crate) fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.out
    }

    fn escaped(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.out.push_str("&amp;"),
                '<' => self.out.push_str("&lt;"),
                '>' => self.out.push_str("&gt;"),
                '"' => self.out.push_str("&quot;"),
                // Left as it is, a carriage return becomes a line feed in every parser.
                '\r' => self.out.push_str("&#xD;"),
                '\t' | '\n' => self.out.push(character),
                // XML 1.0 cannot carry these in any form.
                '\0'..'\u{20}' | '\u{fffe}' | '\u{ffff}' => self.out.push('\u{fffd}'),
                '\u{7f}'..'\u{a0}' => {
                    // Writing to a string cannot fail.
                    let _ = write!(self.out, "&#x{:X};", u32::from(character));
                }
                _ => self.out.push(character),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_elements_nest() {
        let mut xml = Xml::new();
        xml.open_with_namespace("A", "https://x/");
        xml.text("B", "<&>\"'é\r\n\u{1}\u{85}");
        xml.open("C");
        assert_eq!(
            xml.finish(),
            "<A xmlns=\"https://x/\"><B>&lt;&amp;&gt;&quot;'é&#xD;\n\u{fffd}&#x85;</B><C></C></A>"
        );
    }
}
