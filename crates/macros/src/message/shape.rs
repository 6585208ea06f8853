//! Whether Go can read a message, for `#[service]` to check: an implementation of `bothways::codec::go::Shape`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, Field, Fields, Ident, Item, Path, Result, ext::IdentExt};

use super::{Kind, Said, serde_keys};

/// How many levels of messages within each other are looked into.
const LEVELS: usize = 8;

/// The implementation. None for what is written in a way that its author has chosen: that is trusted.
pub(super) fn shape(krate: &Path, item: &Item) -> Result<TokenStream> {
    let (ident, generics, attributes) = match item {
        Item::Struct(item) => (&item.ident, &item.generics, &item.attrs),
        Item::Enum(item) => (&item.ident, &item.generics, &item.attrs),
        _ => return Ok(quote!()),
    };

    let keys = serde_keys(attributes);
    let has = |key: &str| keys.iter().any(|known| known == key);
    // With one of these, the fields do not tell what is on the wire.
    if ["into", "from", "try_from", "remote", "tag", "untagged"].iter().any(|key| has(key)) {
        return Ok(quote!());
    }

    let consts = match item {
        Item::Struct(item) => of_struct(krate, ident, &item.fields, has("transparent"))?,
        Item::Enum(item) => {
            let with_data = item.variants.iter().any(|variant| !variant.fields.is_empty());
            of_enum(krate, with_data)
        }
        _ => return Ok(quote!()),
    };

    // What a type parameter stands for must have a shape too.
    let mut generics = generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(syn::parse_quote!(#krate::__private::go::Shape));
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let cfgs = cfgs(attributes);
    Ok(quote! {
        #(#cfgs)*
        #[allow(deprecated, unused_imports)]
        const _: () = {
            use #krate::__private::go::Trusted as _;

            #[automatically_derived]
            impl #impl_generics #krate::__private::go::Shape for #ident #type_generics #where_clause {
                #consts
            }
        };
    })
}

fn of_struct(krate: &Path, ident: &Ident, fields: &Fields, transparent: bool) -> Result<TokenStream> {
    let go = quote!(#krate::__private::go);
    let mut checked = Vec::new();
    let mut written = 0;

    for (at, field) in fields.iter().enumerate() {
        let (is_written, is_checked) = looked_at(field)?;
        written += usize::from(is_written);
        if is_checked {
            checked.push((at, field));
        }
    }

    let named = matches!(fields, Fields::Named(_));
    if !named && 1 < written {
        return Ok(quote!(const AT_0: #go::Verdict = #go::Fault::TUPLE;));
    }

    let of = ident.unraw().to_string();
    let levels = (1..=LEVELS).map(|level| {
        let (at, below) = (format_ident!("AT_{level}"), format_ident!("AT_{}", level - 1));
        let verdicts = checked.iter().map(|(place, Field { attrs, ident, ty, .. })| {
            let name = ident.as_ref().map_or_else(|| place.to_string(), |ident| ident.unraw().to_string());
            let cfgs = cfgs(attrs);
            quote!(#(#cfgs)* #go::Fault::of_field(<#go::Probe<#ty>>::#below, #of, #name))
        });
        quote!(const #at: #go::Verdict = #go::Fault::first(&[#(#verdicts),*]);)
    });

    // A newtype is as what it holds.
    let same = match &checked[..] {
        [(_, field)] if transparent || !named => {
            let ty = &field.ty;
            quote! {
                const IN_LIST: #go::Verdict = <#go::Probe<#ty>>::IN_LIST;
                const AS_KEY: #go::Verdict = <#go::Probe<#ty>>::AS_KEY;
            }
        }
        _ => quote!(),
    };

    Ok(quote! {
        #same
        const AT_0: #go::Verdict = ::core::option::Option::None;
        #(#levels)*
    })
}

/// Whether serde writes the field, and whether we know how.
fn looked_at(field: &Field) -> Result<(bool, bool)> {
    let keys = serde_keys(&field.attrs);
    let has = |key: &str| keys.iter().any(|known| known == key);
    if has("skip") || has("skip_serializing") {
        return Ok((false, false));
    }
    let said = Said::take(&mut field.attrs.clone(), true)?;
    let own_way = said.plain || has("with") || has("serialize_with") || has("borrow");
    Ok((true, !own_way && (has("flatten") || Kind::of(&field.ty).is_none())))
}

/// A variant without data is its name.
fn of_enum(krate: &Path, with_data: bool) -> TokenStream {
    let go = quote!(#krate::__private::go);
    if with_data {
        return quote!(const AT_0: #go::Verdict = #go::Fault::ENUM;);
    }
    quote! {
        const AS_KEY: #go::Verdict = ::core::option::Option::None;
        const AT_0: #go::Verdict = ::core::option::Option::None;
    }
}

fn cfgs(attributes: &[Attribute]) -> Vec<&Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
}
