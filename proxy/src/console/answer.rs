//! Tables as the console answers them, in text and in binary form. Not what stands in them.

use bytes::{BufMut, BytesMut};

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Int4,
    Int8,
    Numeric,
    Bytea,
}

impl Type {
    /// Its OID (PostgreSQL's `pg_type.dat`) and its length.
    fn oid(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Numeric => (1700, -1),
            Self::Bytea => (17, -1),
        }
    }
}

/// A column: its name and its type.
pub(super) type Column = (&'static str, Type);

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    Int(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Int(number.into())
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Int(yes.into())
    }
}

/// Rows with their columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Value>>,
}

impl Table {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One row of one value.
    pub(super) fn one(name: &'static str, value: impl Into<Value>) -> Self {
        Self { columns: vec![(name, Type::Text)], rows: vec![vec![value.into()]] }
    }

    pub(super) fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "{:?}", self.columns);
        self.rows.push(row);
    }
}

/// Which columns go out in binary form, as Bind asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Formats(pub(super) Vec<u16>);

impl Formats {
    fn of(&self, column: usize) -> u16 {
        match self.0.as_slice() {
            [] => 0,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(0),
        }
    }
}

/// A message: its body is written by `write`.
fn message(out: &mut BytesMut, tag: u8, write: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    write(out);
    let length = u32::try_from(out.len() - at).expect("tables are small");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn count(n: usize) -> i16 {
    i16::try_from(n).expect("tables have few columns")
}

/// RowDescription.
pub(super) fn describe(out: &mut BytesMut, table: &Table, formats: &Formats) {
    message(out, b'T', |out| {
        out.put_i16(count(table.columns.len()));
        for (index, (name, kind)) in table.columns.iter().enumerate() {
            let (oid, length) = kind.oid();
            out.put_slice(name.as_bytes());
            out.put_u8(0);
            out.put_u32(0);
            out.put_i16(0);
            out.put_u32(oid);
            out.put_i16(length);
            out.put_i32(-1);
            out.put_u16(formats.of(index));
        }
    });
}

/// One DataRow for each row.
pub(super) fn rows(out: &mut BytesMut, table: &Table, formats: &Formats) {
    table.rows.iter().for_each(|values| row(out, &table.columns, values, formats));
}

/// One DataRow.
pub(super) fn row(out: &mut BytesMut, columns: &[Column], row: &[Value], formats: &Formats) {
    message(out, b'D', |out| {
        out.put_i16(count(row.len()));
        for (index, (value, (_, kind))) in row.iter().zip(columns).enumerate() {
            match value {
                Value::Null => out.put_i32(-1),
                value => {
                    let at = out.len();
                    out.put_i32(0);
                    if formats.of(index) == 1 {
                        binary(out, value, *kind);
                    } else {
                        text(out, value);
                    }
                    let length = i32::try_from(out.len() - at - 4).expect("values are small");
                    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
    });
}

fn text(out: &mut BytesMut, value: &Value) {
    match value {
        Value::Null => {}
        Value::Text(text) => out.put_slice(text.as_bytes()),
        Value::Int(number) => out.put_slice(number.to_string().as_bytes()),
    }
}

fn binary(out: &mut BytesMut, value: &Value, kind: Type) {
    let number = match value {
        Value::Int(number) => *number,
        other => return text(out, other),
    };
    match kind {
        Type::Int4 => out.put_i32(i32::try_from(number).unwrap_or(i32::MAX)),
        Type::Int8 => out.put_i64(number),
        Type::Numeric => numeric(out, number.unsigned_abs()),
        Type::Text | Type::Bytea => text(out, value),
    }
}

/// A whole number as `numeric` has it: digits to the base of ten thousand (PostgreSQL's `numeric_send`).
fn numeric(out: &mut BytesMut, mut number: u64) {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(i16::try_from(number % 10_000).expect("a rest of ten thousand"));
        number /= 10_000;
    }
    out.put_i16(count(digits.len()));
    out.put_i16(count(digits.len()) - 1);
    out.put_i16(0);
    out.put_i16(0);
    digits.iter().rev().for_each(|digit| out.put_i16(*digit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_binary_form() {
        let shown = |value: i64, kind| {
            let mut out = BytesMut::new();
            binary(&mut out, &Value::Int(value), kind);
            out.to_vec()
        };
        assert_eq!(shown(7, Type::Int4), [0, 0, 0, 7]);
        assert_eq!(shown(i64::MAX, Type::Int4), i32::MAX.to_be_bytes());
        assert_eq!(shown(7, Type::Int8), [0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(shown(120_003, Type::Numeric), [0, 2, 0, 1, 0, 0, 0, 0, 0, 12, 0, 3]);
        assert_eq!(shown(0, Type::Numeric), [0, 0, 255, 255, 0, 0, 0, 0]);
    }
}
