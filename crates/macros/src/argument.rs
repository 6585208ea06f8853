//! The one argument of a method: its type on the wire, and its type in the stub.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{Error, Ident, Path, Result, Type, TypeReference, spanned::Spanned};

use crate::message::{is_byte, ungrouped};

pub(crate) struct Argument {
    /// What the stub calls it.
    pub(crate) ident: Ident,
    form: Form,
    /// True if the method takes a reference.
    borrowed: bool,
    span: Span,
}

/// How a type travels.
enum Form {
    /// A text: a `String` at the method, a `&str` at the stub.
    Text,
    /// Bytes: `&[u8]` at both ends, Go's `[]byte` between them.
    Octets,
    /// A list of these: `&[T]` at both ends.
    List(Type),
    /// As it is: a `T` or `&T` at the method, a `&T` at the stub.
    Itself(Type),
}

impl Argument {
    /// By what a method takes.
    pub(crate) fn new(ident: Ident, ty: &Type) -> Result<Self> {
        let span = ty.span();
        let Type::Reference(TypeReference { lifetime, mutability, elem, .. }) = ty else {
            let form = if is_string(ty) { Form::Text } else { Form::Itself(ty.clone()) };
            return Ok(Self { ident, form, borrowed: false, span });
        };

        if let Some(mutability) = mutability {
            let text = "arguments come off the wire: take them by value or by `&`";
            return Err(Error::new(mutability.span(), text));
        }
        if let Some(lifetime) = lifetime.as_ref().filter(|lifetime| lifetime.ident != "_") {
            let text = "an argument lives as long as its call: leave the lifetime out";
            return Err(Error::new(lifetime.span(), text));
        }

        // What is borrowed is decoded into an owned form, which the method then borrows.
        let form = match ungrouped(elem) {
            Type::Slice(slice) if is_byte(&slice.elem) => Form::Octets,
            Type::Slice(slice) => Form::List((*slice.elem).clone()),
            Type::Path(path) if path.path.is_ident("str") => Form::Text,
            ty if is_string(ty) => Form::Text,
            ty => Form::Itself(ty.clone()),
        };
        Ok(Self { ident, form, borrowed: true, span })
    }

    /// What its bytes become, with the span of the argument.
    pub(crate) fn decoded(&self, krate: &Path) -> TokenStream {
        match &self.form {
            Form::Text => quote_spanned!(self.span=> ::std::string::String),
            Form::Octets => quote_spanned!(self.span=> #krate::__private::Bytes),
            Form::List(ty) => quote_spanned!(self.span=> ::std::vec::Vec<#ty>),
            Form::Itself(ty) => ty.to_token_stream(),
        }
    }

    /// The decoded `argument` as the method takes it.
    pub(crate) fn passed(&self) -> TokenStream {
        if self.borrowed { quote!(&argument) } else { quote!(argument) }
    }

    /// What the stub takes a reference of.
    pub(crate) fn taken(&self) -> TokenStream {
        match &self.form {
            Form::Text => quote!(str),
            Form::Octets => quote!([u8]),
            Form::List(ty) => quote!([#ty]),
            Form::Itself(ty) => ty.to_token_stream(),
        }
    }

    /// What the stub sends: its type, and a reference of it.
    pub(crate) fn sent(&self, krate: &Path) -> (TokenStream, TokenStream) {
        let name = &self.ident;
        match &self.form {
            Form::Octets => {
                let octets = quote!(#krate::__private::ByteSlice);
                (quote!(#octets<'_>), quote!(&#octets(#name)))
            }
            _ => (self.taken(), quote!(#name)),
        }
    }

    pub(crate) fn span(&self) -> Span {
        self.span
    }
}

/// `String`, with or without its path.
fn is_string(ty: &Type) -> bool {
    let Type::Path(path) = ungrouped(ty) else {
        return false;
    };
    let segments: Vec<String> = path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    let names: Vec<&str> = segments.iter().map(String::as_str).collect();
    path.qself.is_none() && matches!(names[..], ["String"] | ["string", "String"] | [_, "string", "String"])
}
