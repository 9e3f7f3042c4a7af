//! The reference page `docs/config.md`, made from the table of options; a test keeps the file true.

use std::fmt::Write;

use super::options::SECTIONS;
use super::section::{OptionDoc, SectionDoc};

/// The page as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         `pgsteady.toml`; `pgsteady check` says what is wrong in it, `SIGHUP` has it read again. A bad file never replaces a \
         good one. This page is made by `pgsteady docs config`.\n\n\
         Durations have a unit (`\"250ms\"`, `\"30s\"`, `\"5min\"`), sizes too (`\"64MiB\"`). Relative paths begin at the \
         file's folder. ↻ marks what a reload cannot change.\n",
    );
    for section in SECTIONS {
        write_section(&mut page, section);
    }
    page
}

fn write_section(page: &mut String, section: &SectionDoc) {
    let about = join(section.about);
    let _ = write!(page, "\n## `{}`\n\n{about}\n\n", section.header.replace(", ", "`, `"));
    let _ = writeln!(page, "| key | default | meaning | allowed |\n|---|---|---|---|");
    for option in section.options {
        write_option(page, option);
    }
}

fn write_option(page: &mut String, option: &OptionDoc) {
    let restart = if option.restart { " ↻" } else { "" };
    let default = option.default.map_or_else(String::new, |d| format!("`{d}`"));
    let meaning = join(option.doc).replace('|', "\\|");
    let _ = writeln!(page, "| `{}`{restart} | {default} | {meaning} | {} |", option.key, (option.allowed)());
}

/// Lines of a doc comment as one paragraph.
fn join(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE=1 cargo test -p pgsteady reference` writes the page anew.
    #[test]
    fn the_page_in_docs_is_what_the_program_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, reference()).unwrap();
        }
        let page = std::fs::read_to_string(file).unwrap();
        assert!(page == reference(), "docs/config.md is out of date: UPDATE=1 cargo test -p pgsteady reference");
    }
}
