//! Code of a message's own for MessagePack, which beats serde's: keys are constants, and fields are looked for where
//! they were written. `bothways::codec::direct` has what it uses.
//!
//! It is made from the attributes that serde sees, and does the same. A type with an attribute that is not known here
//! goes by serde alone.

use proc_macro2::{Literal, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, Expr, ExprLit, ExprPath, Field, Fields, GenericParam, Ident, Item, ItemStruct, Lifetime, Lit, LitStr,
    Meta, Path, Token, Type, ext::IdentExt, punctuated::Punctuated,
};

use super::ungrouped;

/// How to read and write a struct without serde.
pub(super) struct Plan {
    ident: Ident,
    lifetimes: Vec<Lifetime>,
    /// Those that values of this type share with the payload.
    borrowed: Vec<Lifetime>,
    fields: Vec<FieldPlan>,
    strict: bool,
}

struct FieldPlan {
    ident: Ident,
    ty: Type,
    /// On the wire.
    name: String,
    /// In neither direction.
    skip: bool,
    skip_if: Option<ExprPath>,
    default: Option<Default>,
    read: Way,
    write: Way,
}

/// What a missing field is.
enum Default {
    OfType,
    Function(ExprPath),
}

/// How a field is read, or written.
enum Way {
    /// By its type.
    Itself,
    /// The same, and `nil` is the default. Only for reading.
    NilOrDefault,
    /// As a byte string.
    Octets,
    /// By a function.
    Function(ExprPath),
}

impl Plan {
    /// From an item with all that serde needs to be told; `None` if it says more than is known here.
    pub(super) fn new(krate: &Path, item: &Item) -> Option<Self> {
        let Item::Struct(ItemStruct { attrs, ident, generics, fields: Fields::Named(fields), .. }) = item else {
            return None;
        };

        let mut rule = None;
        let mut strict = false;
        for meta in metas(attrs)? {
            match (key(&meta)?.as_str(), &meta) {
                ("crate", _) => {}
                ("rename_all", meta) => rule = Some(literal(meta)?.value()),
                ("deny_unknown_fields", Meta::Path(_)) => strict = true,
                _ => return None,
            }
        }

        let lifetimes: Option<Vec<Lifetime>> = generics.params.iter().map(lifetime).collect();
        // The copy for serde has another `Self`, which its lifetimes are not part of.
        let other_self = !generics.params.is_empty() && says_self(fields.to_token_stream());
        if generics.where_clause.is_some() || other_self {
            return None;
        }

        let mut plan = Self { ident: ident.clone(), lifetimes: lifetimes?, borrowed: vec![], fields: vec![], strict };
        for field in &fields.named {
            let field = FieldPlan::new(krate, field, rule.as_deref(), &mut plan.borrowed)?;
            plan.fields.push(field);
        }
        Some(plan)
    }

    pub(super) fn ident(&self) -> &Ident {
        &self.ident
    }

    /// The implementations that go without serde, and those of serde that lead to them.
    pub(super) fn impls(&self, krate: &Path, copy: &Ident, json_copy: Option<&Ident>) -> TokenStream {
        let (writes, reads) = (self.writes(krate, copy), self.reads(krate, copy));
        let serde = quote!(#krate::__private::serde);
        let direct = quote!(#krate::__private::direct);
        let Self { ident, lifetimes, borrowed, .. } = self;
        let is_text = quote!(#krate::__private::is_text);

        let (write_json, read_json) = match json_copy {
            None => (None, None),
            Some(json) => (
                Some(quote! {
                    if #is_text(__serializer.is_human_readable()) {
                        return #json::serialize(self, __serializer);
                    }
                }),
                Some(quote! {
                    if #is_text(__deserializer.is_human_readable()) {
                        return #json::deserialize(__deserializer);
                    }
                }),
            ),
        };

        quote! {
            #[automatically_derived]
            impl<#(#lifetimes),*> #serde::Serialize for #ident<#(#lifetimes),*> {
                fn serialize<__S: #serde::Serializer>(
                    &self,
                    __serializer: __S,
                ) -> ::core::result::Result<__S::Ok, __S::Error> {
                    #write_json
                    #direct::serialize(self, __serializer)
                }
            }

            #[automatically_derived]
            impl<'de #(: #borrowed +)* #(, #lifetimes)*> #serde::Deserialize<'de> for #ident<#(#lifetimes),*> {
                fn deserialize<__D: #serde::Deserializer<'de>>(
                    __deserializer: __D,
                ) -> ::core::result::Result<Self, __D::Error> {
                    #read_json
                    #direct::deserialize(__deserializer)
                }
            }

            #writes
            #reads
        }
    }

    fn writes(&self, krate: &Path, copy: &Ident) -> TokenStream {
        let serde = quote!(#krate::__private::serde);
        let direct = quote!(#krate::__private::direct);
        let Self { ident, lifetimes, .. } = self;
        let body = self.writing(krate);

        quote! {
            #[automatically_derived]
            #[allow(deprecated, unused_imports)]
            impl<#(#lifetimes),*> #direct::Write for #ident<#(#lifetimes),*> {
                fn write(
                    &self,
                    __writer: &mut #direct::Writer,
                ) -> ::core::result::Result<(), #direct::WriteError> {
                    use #direct::OutBySerde as _;

                    #body
                    ::core::result::Result::Ok(())
                }
            }

            #[automatically_derived]
            impl<#(#lifetimes),*> #direct::WriteMessage for #ident<#(#lifetimes),*> {
                fn by_serde<__S: #serde::Serializer>(
                    &self,
                    __serializer: __S,
                ) -> ::core::result::Result<__S::Ok, __S::Error> {
                    #copy::serialize(self, __serializer)
                }
            }
        }
    }

    fn writing(&self, krate: &Path) -> TokenStream {
        let direct = quote!(#krate::__private::direct);
        let fields = || self.fields.iter().filter(|field| !field.skip);
        let dynamic = fields().any(|field| field.skip_if.is_some());
        let mut constant = vec![];
        let mut body = TokenStream::new();

        if dynamic {
            let entries = fields().map(|FieldPlan { ident, skip_if, .. }| match skip_if {
                None => quote!(1),
                Some(skip) => quote!(::core::primitive::usize::from(!#skip(&self.#ident))),
            });
            body.extend(quote!(#direct::Writer::map(__writer, 0 #(+ #entries)*)?;));
        } else {
            constant = map_head(fields().count());
        }

        for field in fields() {
            let FieldPlan { ident, ty, name, skip_if, write, .. } = field;
            // What is constant is written in one piece: the map's head with the first key.
            constant.extend(text(name));
            let key = Literal::byte_string(&std::mem::take(&mut constant));
            let value = match write {
                Way::Octets => quote!(#direct::write_octets(&self.#ident, __writer)?;),
                Way::Function(function) => quote!(#function(&self.#ident, &mut *__writer)?;),
                _ => quote!(<#direct::Out<#ty>>::write(&self.#ident, __writer)?;),
            };
            let entry = quote!(#direct::Writer::raw(__writer, #key); #value);
            body.extend(match skip_if {
                None => entry,
                Some(skip) => quote!(if !#skip(&self.#ident) { #entry }),
            });
        }

        // A message without fields is its head alone.
        if !constant.is_empty() {
            let constant = Literal::byte_string(&constant);
            body.extend(quote!(#direct::Writer::raw(__writer, #constant);));
        }
        body
    }

    fn reads(&self, krate: &Path, copy: &Ident) -> TokenStream {
        let serde = quote!(#krate::__private::serde);
        let direct = quote!(#krate::__private::direct);
        let Self { ident, lifetimes, borrowed, .. } = self;
        let body = self.reading(krate);
        let generics = quote!(<'de #(: #borrowed +)* #(, #lifetimes)*>);

        quote! {
            #[automatically_derived]
            impl #generics #direct::Read<'de> for #ident<#(#lifetimes),*> {
                fn read(
                    __reader: &mut #direct::Reader<'de>,
                ) -> ::core::result::Result<Self, #direct::ReadError> {
                    #direct::message(__reader)
                }
            }

            #[automatically_derived]
            #[allow(deprecated, unused_imports)]
            impl #generics #direct::ReadMessage<'de> for #ident<#(#lifetimes),*> {
                fn read_map(
                    __reader: &mut #direct::Reader<'de>,
                    __entries: ::core::primitive::u32,
                ) -> ::core::result::Result<Self, #direct::ReadError> {
                    use #direct::InBySerde as _;

                    #body
                }

                fn by_serde<__D: #serde::Deserializer<'de>>(
                    __deserializer: __D,
                ) -> ::core::result::Result<Self, __D::Error> {
                    #copy::deserialize(__deserializer)
                }
            }
        }
    }

    fn reading(&self, krate: &Path) -> TokenStream {
        let direct = quote!(#krate::__private::direct);
        let fields: Vec<&FieldPlan> = self.fields.iter().filter(|field| !field.skip).collect();
        let slots: Vec<Ident> = (0..fields.len()).map(|place| format_ident!("__field_{place}")).collect();
        let reads: Vec<Ident> = (0..fields.len()).map(|place| format_ident!("__read_{place}")).collect();
        let types: Vec<&Type> = fields.iter().map(|field| &field.ty).collect();
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();

        let keys = names.iter().map(|name| Literal::byte_string(&text(name)));
        let ways = fields.iter().map(|FieldPlan { ty, read, .. }| match read {
            Way::Itself => quote!(<#direct::In<'de, #ty>>::read(__reader)),
            Way::NilOrDefault => quote!(<#direct::In<'de, #ty>>::read_or_default(__reader)),
            Way::Octets => quote!(#direct::read_octets(__reader)),
            Way::Function(function) => quote!(#function(&mut *__reader)),
        });

        let places = 0..fields.len();
        let strict = self.strict;
        let mut read = slots.iter();
        let values = self.fields.iter().map(|field| field.value(krate, &mut read));

        quote! {
            let mut __left = __entries;
            #(let mut #slots: ::core::option::Option<#types> = ::core::option::Option::None;)*
            #(
                let #reads = |__reader: &mut #direct::Reader<'de>|
                    -> ::core::result::Result<#types, #direct::ReadError> { #ways };
            )*
            #(
                if #direct::Reader::begins(__reader, #keys, &mut __left) {
                    #slots = ::core::option::Option::Some(#reads(__reader)?);
                }
            )*
            while let ::core::option::Option::Some(__place) =
                #direct::Reader::key(__reader, &[#(#names),*], #strict, &mut __left)?
            {
                match __place {
                    #(
                        #places => {
                            if ::core::option::Option::is_some(&#slots) {
                                return ::core::result::Result::Err(#direct::ReadError::duplicate(#names));
                            }
                            #slots = ::core::option::Option::Some(#reads(__reader)?);
                        }
                    )*
                    _ => #direct::Reader::ignore(__reader)?,
                }
            }
            ::core::result::Result::Ok(Self { #(#values),* })
        }
    }
}

impl FieldPlan {
    fn new(krate: &Path, field: &Field, rule: Option<&str>, borrowed: &mut Vec<Lifetime>) -> Option<Self> {
        let ident = field.ident.clone()?;
        let name = renamed(&ident.unraw().to_string(), rule)?;
        let ty = field.ty.clone();
        let (read, write) = (Way::Itself, Way::Itself);
        let mut plan = Self { ident, ty, name, skip: false, skip_if: None, default: None, read, write };

        let mut borrow = matches!(ungrouped(&field.ty), Type::Reference(_));
        for meta in metas(&field.attrs)? {
            match (key(&meta)?.as_str(), &meta) {
                ("rename", meta) => plan.name = literal(meta)?.value(),
                ("skip", Meta::Path(_)) => plan.skip = true,
                ("skip_serializing_if", meta) => plan.skip_if = Some(function(meta)?),
                ("default", Meta::Path(_)) => plan.default = Some(Default::OfType),
                ("default", meta) => plan.default = Some(Default::Function(function(meta)?)),
                ("with", meta) => plan.with(krate, meta)?,
                ("serialize_with", meta) => plan.write = Way::Function(function(meta)?),
                ("deserialize_with", meta) => {
                    let nil_or_default = literal(meta)?.value() == super::text_of(krate, "codec::nil_or_default");
                    plan.read = if nil_or_default { Way::NilOrDefault } else { Way::Function(function(meta)?) };
                }
                // serde has a way of its own for what it calls a `Cow`.
                ("borrow", Meta::Path(_)) if !names_cow(&field.ty) => borrow = true,
                _ => return None,
            }
        }

        if borrow {
            add_lifetimes(field.ty.to_token_stream(), borrowed);
        }
        Some(plan)
    }

    fn with(&mut self, krate: &Path, meta: &Meta) -> Option<()> {
        if literal(meta)?.value() == super::text_of(krate, "codec::bytes") {
            (self.read, self.write) = (Way::Octets, Way::Octets);
            return Some(());
        }
        let within = |name: &str| {
            let mut module = function(meta)?;
            module.path.segments.push(Ident::new(name, literal(meta)?.span()).into());
            Some(Way::Function(module))
        };
        (self.read, self.write) = (within("deserialize")?, within("serialize")?);
        Some(())
    }

    /// The field of the struct, from the next slot unless it is skipped.
    fn value<'a>(&self, krate: &Path, slots: &mut impl Iterator<Item = &'a Ident>) -> TokenStream {
        let direct = quote!(#krate::__private::direct);
        let Self { ident, ty, name, .. } = self;
        let default = match &self.default {
            None if self.skip => quote!(::core::default::Default::default()),
            Some(Default::OfType) => quote!(::core::default::Default::default()),
            Some(Default::Function(function)) => quote!(#function()),
            None if matches!(self.read, Way::Itself) => quote!(#direct::missing::<#ty>(#name)?),
            None => quote!(return ::core::result::Result::Err(#direct::ReadError::missing(#name))),
        };

        let slot = if self.skip { None } else { slots.next() };
        let value = match slot {
            None => default,
            Some(slot) => quote! {
                match #slot {
                    ::core::option::Option::Some(__value) => __value,
                    ::core::option::Option::None => #default,
                }
            },
        };

        quote!(#ident: #value)
    }
}

/// Every part of every `#[serde(...)]`; `None` with one that cannot be read, or where not every build has the field.
fn metas(attributes: &[Attribute]) -> Option<Vec<Meta>> {
    let mut metas = vec![];
    for attribute in attributes {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            return None;
        }
        if attribute.path().is_ident("serde") {
            let parts = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
            metas.extend(parts);
        }
    }
    Some(metas)
}

fn key(meta: &Meta) -> Option<String> {
    meta.path().get_ident().map(ToString::to_string)
}

/// The text of `key = "text"`.
fn literal(meta: &Meta) -> Option<&LitStr> {
    let Meta::NameValue(pair) = meta else { return None };
    let mut value = &pair.value;
    while let Expr::Group(group) = value {
        value = &group.expr;
    }
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text),
        _ => None,
    }
}

fn function(meta: &Meta) -> Option<ExprPath> {
    literal(meta)?.parse().ok()
}

fn lifetime(parameter: &GenericParam) -> Option<Lifetime> {
    match parameter {
        GenericParam::Lifetime(parameter) if parameter.bounds.is_empty() => Some(parameter.lifetime.clone()),
        _ => None,
    }
}

fn names_cow(ty: &Type) -> bool {
    ty.to_token_stream().to_string().contains("Cow")
}

/// Adds the lifetimes that a type names, each once.
fn add_lifetimes(tokens: TokenStream, lifetimes: &mut Vec<Lifetime>) {
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => add_lifetimes(group.stream(), lifetimes),
            TokenTree::Punct(quote) if quote.as_char() == '\'' => {
                let Some(TokenTree::Ident(ident)) = tokens.next() else { continue };
                let lifetime = Lifetime { apostrophe: quote.span(), ident };
                if lifetime.ident != "static" && !lifetimes.contains(&lifetime) {
                    lifetimes.push(lifetime);
                }
            }
            _ => {}
        }
    }
}

fn says_self(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "Self",
        TokenTree::Group(group) => says_self(group.stream()),
        _ => false,
    })
}

/// A field's name by serde's rule for the names of a type; `None` if there is no such rule.
fn renamed(name: &str, rule: Option<&str>) -> Option<String> {
    let pascal = || {
        let words = name.split('_').map(|word| {
            let first = word.get(..1).unwrap_or_default();
            first.to_ascii_uppercase() + &word[first.len()..]
        });
        words.collect::<String>()
    };

    Some(match rule {
        None | Some("lowercase" | "snake_case") => name.to_owned(),
        Some("UPPERCASE" | "SCREAMING_SNAKE_CASE") => name.to_ascii_uppercase(),
        Some("PascalCase") => pascal(),
        Some("camelCase") => {
            let pascal = pascal();
            let first = pascal.get(..1)?;
            first.to_ascii_lowercase() + &pascal[1..]
        }
        Some("kebab-case") => name.replace('_', "-"),
        Some("SCREAMING-KEBAB-CASE") => name.to_ascii_uppercase().replace('_', "-"),
        Some(_) => return None,
    })
}

/// The head of a map of so many entries, in MessagePack.
fn map_head(entries: usize) -> Vec<u8> {
    match (u8::try_from(entries), u16::try_from(entries)) {
        (Ok(entries @ ..=15), _) => vec![0x80 | entries],
        (_, Ok(entries)) => [&[0xde][..], &entries.to_be_bytes()].concat(),
        _ => unreachable!("a struct with more than 65,535 fields"),
    }
}

/// A text in MessagePack.
fn text(text: &str) -> Vec<u8> {
    let head = match (u8::try_from(text.len()), u16::try_from(text.len())) {
        (Ok(len @ ..=31), _) => vec![0xa0 | len],
        (Ok(len), _) => vec![0xd9, len],
        (_, Ok(len)) => [&[0xda][..], &len.to_be_bytes()].concat(),
        _ => unreachable!("a name of more than 64 KiB"),
    };
    [&head[..], text.as_bytes()].concat()
}
