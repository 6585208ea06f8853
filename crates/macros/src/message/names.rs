//! Types that serde derives from a copy, in its `remote` form: those with other names in JSON, as Go's structs with
//! `json` tags have them, and those with code of their own for MessagePack.
//!
//! Serde knows one name for a field. So for other names in JSON there are two copies of the type, one for each set of
//! names. The type itself goes through the one that the format wants.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::{
    Attribute, Error, Field, Ident, Item, LitStr, Meta, Path, Result, Token, Type, parse::Parser,
    punctuated::Punctuated, spanned::Spanned,
};

use super::{Form, attributes_of, direct::Plan, serde_keys, with_serde_attributes};

/// Whether a field or a variant has a name for JSON.
pub(super) fn has_json_names(item: &Item) -> bool {
    fn says_json(attributes: &[Attribute]) -> bool {
        attributes.iter().filter(|attribute| attribute.path().is_ident("message")).any(|attribute| {
            let metas = attribute.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
            metas.is_ok_and(|metas| metas.iter().any(|meta| meta.path().is_ident("json")))
        })
    }
    match item {
        Item::Struct(item) => item.fields.iter().any(|field| says_json(&field.attrs)),
        Item::Enum(item) => item
            .variants
            .iter()
            .any(|variant| says_json(&variant.attrs) || variant.fields.iter().any(|field| says_json(&field.attrs))),
        _ => false,
    }
}

/// The type, without serde's derives, and its two copies with them.
pub(super) fn message(krate: &Path, item: &Item, rule: Option<&LitStr>) -> Result<TokenStream> {
    let (ident, generics) = match item {
        Item::Struct(item) => (&item.ident, &item.generics),
        Item::Enum(item) => (&item.ident, &item.generics),
        other => return Err(Error::new(other.span(), "a message is a struct or an enum")),
    };
    if !generics.params.is_empty() {
        let text = "names for JSON are for types without generic parameters";
        return Err(Error::new(generics.span(), text));
    }

    let (binary, json) = (format_ident!("__BinaryOf{ident}"), format_ident!("__JsonOf{ident}"));
    let copies = [copy(krate, item, &binary, Form::Binary)?, copy(krate, item, &json, Form::Json(rule))?];
    let impls = match plan(krate, item)? {
        Some(plan) => plan.impls(krate, &binary, Some(&json)),
        None => impls(krate, ident, &binary, &json),
    };

    let item = without_attributes(item);
    Ok(quote! {
        #item

        const _: () = {
            #(#copies)*
            #impls
        };
    })
}

/// How to read and write the type without serde, if that is possible.
pub(super) fn plan(krate: &Path, item: &Item) -> Result<Option<Plan>> {
    Ok(Plan::new(krate, &with_serde_attributes(krate, item.clone(), Form::Binary)?))
}

/// The type, with its own code and with a copy for serde.
pub(super) fn direct_message(krate: &Path, item: &Item, plan: &Plan) -> Result<TokenStream> {
    let name = format_ident!("__SerdeOf{}", plan.ident());
    let copy = copy(krate, item, &name, Form::Every)?;
    let impls = plan.impls(krate, &name, None);
    let item = without_attributes(item);
    Ok(quote! {
        #item

        const _: () = {
            #copy
            #impls
        };
    })
}

/// The type itself, of which serde sees nothing.
fn without_attributes(item: &Item) -> Item {
    let mut item = item.clone();
    for_each_attributes(&mut item, |attributes| {
        attributes.retain(|attribute| !attribute.path().is_ident("message") && !attribute.path().is_ident("serde"));
    });
    item
}

/// A copy of the type, for serde to derive from.
fn copy(krate: &Path, item: &Item, name: &Ident, form: Form<'_>) -> Result<TokenStream> {
    let mut item = with_serde_attributes(krate, item.clone(), form)?;

    // Docs and derives stay with the type itself: nobody sees the copy.
    for_each_attributes(&mut item, |attributes| {
        attributes.retain(|attribute| attribute.path().is_ident("serde") || attribute.path().is_ident("cfg"));
    });

    let of = match &mut item {
        Item::Struct(item) => {
            item.vis = syn::Visibility::Inherited;
            std::mem::replace(&mut item.ident, name.clone())
        }
        Item::Enum(item) => {
            item.vis = syn::Visibility::Inherited;
            std::mem::replace(&mut item.ident, name.clone())
        }
        _ => return Ok(quote!()),
    };

    // `Self` in a field means the type; within the copy it would mean the copy.
    for_each_field(&mut item, |field| {
        let ty = without_self(field.ty.to_token_stream(), &of);
        field.ty = Type::Verbatim(ty);
    });

    let serde = quote!(#krate::__private::serde);
    let remote = LitStr::new(&of.to_string(), of.span());
    let attributes = attributes_of(&mut item);
    attributes.insert(0, syn::parse_quote!(#[allow(dead_code)]));
    attributes.insert(1, syn::parse_quote!(#[derive(#serde::Serialize, #serde::Deserialize)]));
    attributes.insert(2, syn::parse_quote!(#[serde(remote = #remote)]));
    // Formats and errors get the type's name, not the copy's.
    if !serde_keys(attributes).iter().any(|key| key == "rename") {
        attributes.insert(3, syn::parse_quote!(#[serde(rename = #remote)]));
    }
    Ok(quote!(#item))
}

/// What goes to the one copy or to the other.
fn impls(krate: &Path, ident: &Ident, binary: &Ident, json: &Ident) -> TokenStream {
    let serde = quote!(#krate::__private::serde);
    quote! {
        impl #serde::Serialize for #ident {
            fn serialize<__S: #serde::Serializer>(
                &self,
                __serializer: __S,
            ) -> ::std::result::Result<__S::Ok, __S::Error> {
                if #krate::__private::is_text(__serializer.is_human_readable()) {
                    #json::serialize(self, __serializer)
                } else {
                    #binary::serialize(self, __serializer)
                }
            }
        }

        impl<'de> #serde::Deserialize<'de> for #ident {
            fn deserialize<__D: #serde::Deserializer<'de>>(
                __deserializer: __D,
            ) -> ::std::result::Result<Self, __D::Error> {
                if #krate::__private::is_text(__deserializer.is_human_readable()) {
                    #json::deserialize(__deserializer)
                } else {
                    #binary::deserialize(__deserializer)
                }
            }
        }
    }
}

/// Takes these keys out of every `#[serde(...)]`.
pub(super) fn remove_serde(attributes: &mut [Attribute], keys: &[&str]) {
    let parser = Punctuated::<Meta, Token![,]>::parse_terminated;
    for attribute in attributes.iter_mut().filter(|attribute| attribute.path().is_ident("serde")) {
        let Meta::List(list) = &mut attribute.meta else { continue };
        // One that cannot be read is serde's to complain about.
        let Ok(metas) = parser.parse2(list.tokens.clone()) else { continue };
        let kept = metas.iter().filter(|meta| !keys.iter().any(|key| meta.path().is_ident(key)));
        list.tokens = quote!(#(#kept),*);
    }
}

/// The type's own name where it says `Self`, which is the copy within the copy.
fn without_self(tokens: TokenStream, ident: &Ident) -> TokenStream {
    let replaced = tokens.into_iter().map(|token| match token {
        TokenTree::Ident(word) if word == "Self" => Ident::new(&ident.to_string(), word.span()).into(),
        TokenTree::Group(group) => {
            let mut inner = Group::new(group.delimiter(), without_self(group.stream(), ident));
            inner.set_span(group.span());
            inner.into()
        }
        other => other,
    });
    replaced.collect()
}

fn for_each_field(item: &mut Item, mut act: impl FnMut(&mut Field)) {
    match item {
        Item::Struct(item) => item.fields.iter_mut().for_each(&mut act),
        Item::Enum(item) => {
            item.variants.iter_mut().flat_map(|variant| &mut variant.fields).for_each(&mut act);
        }
        _ => {}
    }
}

/// Those of the type, its variants and its fields.
fn for_each_attributes(item: &mut Item, mut act: impl FnMut(&mut Vec<Attribute>)) {
    act(attributes_of(item));
    if let Item::Enum(item) = item {
        item.variants.iter_mut().for_each(|variant| act(&mut variant.attrs));
    }
    for_each_field(item, |field| act(&mut field.attrs));
}
