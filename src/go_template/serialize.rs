//! From serde types to values and from values to JSON.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::TemplateError;
use super::value::{Record, Value};

/// The value templates see of `data`: structs become records named as serde names them.
///
/// # Errors
/// What the type's own `Serialize` reports, and maps whose keys are neither strings nor numbers.
pub fn to_value<T: Serialize + ?Sized>(data: &T) -> Result<Value, TemplateError> {
    data.serialize(ToValue)
}

impl serde::ser::Error for TemplateError {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil | Self::Missing => serializer.serialize_none(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => match i64::try_from(*value) {
                Ok(value) => serializer.serialize_i64(value),
                Err(_) => serializer.serialize_i128(*value),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::String(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items.iter()),
            Self::Map(entries) => serializer.collect_map(entries.iter()),
            Self::Record(record) => {
                let mut map = serializer.serialize_map(Some(record.fields.len()))?;
                for (name, value) in &record.fields {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

struct ToValue;

macro_rules! integers {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, value: $type) -> Result<Value, TemplateError> {
            Ok(Value::Int(value.into()))
        })*
    };
}

impl Serializer for ToValue {
    type Ok = Value;
    type Error = TemplateError;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Items;
    type SerializeTupleVariant = Items;
    type SerializeMap = Entries;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Fields;

    integers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64
    );

    fn serialize_bool(self, value: bool) -> Result<Value, TemplateError> {
        Ok(Value::Bool(value))
    }
    fn serialize_f32(self, value: f32) -> Result<Value, TemplateError> {
        Ok(Value::Float(value.into()))
    }
    fn serialize_f64(self, value: f64) -> Result<Value, TemplateError> {
        Ok(Value::Float(value))
    }
    fn serialize_char(self, value: char) -> Result<Value, TemplateError> {
        Ok(Value::string(value.to_string()))
    }
    fn serialize_str(self, value: &str) -> Result<Value, TemplateError> {
        Ok(Value::string(value))
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<Value, TemplateError> {
        Ok(Value::List(
            value
                .iter()
                .map(|byte| Value::Int((*byte).into()))
                .collect(),
        ))
    }
    fn serialize_none(self) -> Result<Value, TemplateError> {
        Ok(Value::Nil)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, TemplateError> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Value, TemplateError> {
        Ok(Value::Nil)
    }
    fn serialize_unit_struct(self, _name: &'static str) -> Result<Value, TemplateError> {
        Ok(Value::Nil)
    }
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<Value, TemplateError> {
        Ok(Value::string(variant))
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<Value, TemplateError> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, TemplateError> {
        let entry = (variant.to_owned(), value.serialize(self)?);
        Ok(Value::Map(Rc::new(BTreeMap::from([entry]))))
    }
    fn serialize_seq(self, length: Option<usize>) -> Result<Items, TemplateError> {
        Ok(Items(Vec::with_capacity(length.unwrap_or(0))))
    }
    fn serialize_tuple(self, length: usize) -> Result<Items, TemplateError> {
        self.serialize_seq(Some(length))
    }
    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        length: usize,
    ) -> Result<Items, TemplateError> {
        self.serialize_seq(Some(length))
    }
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        _variant: &'static str,
        length: usize,
    ) -> Result<Items, TemplateError> {
        self.serialize_seq(Some(length))
    }
    fn serialize_map(self, _length: Option<usize>) -> Result<Entries, TemplateError> {
        Ok(Entries::default())
    }
    fn serialize_struct(self, name: &'static str, length: usize) -> Result<Fields, TemplateError> {
        Ok(Fields(Record {
            type_name: name.to_owned(),
            fields: Vec::with_capacity(length),
            methods: Vec::new(),
        }))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        _index: u32,
        _variant: &'static str,
        length: usize,
    ) -> Result<Fields, TemplateError> {
        self.serialize_struct(name, length)
    }
}

/// A list being made.
struct Items(Vec<Value>);

/// A map being made, with the key whose value comes next.
#[derive(Default)]
struct Entries {
    map: BTreeMap<String, Value>,
    key: Option<String>,
}

/// A record being made.
struct Fields(Record);

impl Items {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        self.0.push(value.serialize(ToValue)?);
        Ok(())
    }
    fn finish(self) -> Value {
        Value::List(self.0.into())
    }
}

impl SerializeSeq for Items {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        self.push(value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(self.finish())
    }
}

impl SerializeTuple for Items {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        self.push(value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(self.finish())
    }
}

impl SerializeTupleStruct for Items {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        self.push(value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(self.finish())
    }
}

impl SerializeTupleVariant for Items {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        self.push(value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(self.finish())
    }
}

impl SerializeMap for Entries {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), TemplateError> {
        self.key = Some(match key.serialize(ToValue)? {
            Value::String(text) => text.to_string(),
            Value::Int(number) => number.to_string(),
            other => {
                return Err(TemplateError(format!(
                    "a map key of type {}",
                    other.type_name()
                )));
            }
        });
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), TemplateError> {
        let key = self.key.take().unwrap_or_default();
        self.map.insert(key, value.serialize(ToValue)?);
        Ok(())
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(Value::Map(Rc::new(self.map)))
    }
}

impl Fields {
    fn push<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), TemplateError> {
        self.0
            .fields
            .push((name.to_owned(), value.serialize(ToValue)?));
        Ok(())
    }
}

impl SerializeStruct for Fields {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), TemplateError> {
        self.push(name, value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(Value::Record(Rc::new(self.0)))
    }
}

impl SerializeStructVariant for Fields {
    type Ok = Value;
    type Error = TemplateError;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), TemplateError> {
        self.push(name, value)
    }
    fn end(self) -> Result<Value, TemplateError> {
        Ok(Value::Record(Rc::new(self.0)))
    }
}
