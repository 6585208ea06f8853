//! What `#[service]`, the item below it and the `#[rpc]` attributes in it say, as values.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::{
    Attribute, Error, Ident, ImplItem, ImplItemFn, ItemImpl, ItemTrait, LitStr, Path, Result, Signature, TraitItem,
    TraitItemFn, Type, Visibility, ext::IdentExt, meta::ParseNestedMeta, parse::Parser, spanned::Spanned,
};

/// Errors gathered so far, to be reported together.
#[derive(Default)]
pub(crate) struct Errors(Option<Error>);

impl Errors {
    /// Adds one.
    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// All of them, if there are any.
    pub(crate) fn combined(self) -> Option<Error> {
        self.0
    }

    /// The value, or its error kept for later.
    pub(crate) fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }
}

/// A service, before its methods are looked at.
pub(crate) struct Service {
    /// Where `bothways` is.
    pub(crate) krate: Path,
    /// The name of the trait or the type, from which other names are made.
    pub(crate) ident: Ident,
    /// The service path.
    pub(crate) path: String,
    pub(crate) item: Item,
}

/// What the attribute is on.
pub(crate) enum Item {
    Trait(ItemTrait),
    Impl(ItemImpl),
}

impl ToTokens for Item {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Trait(item) => item.to_tokens(tokens),
            Self::Impl(item) => item.to_tokens(tokens),
        }
    }
}

impl Item {
    /// The visibility of what is generated beside it.
    pub(crate) fn visibility(&self) -> Visibility {
        match self {
            Self::Trait(item) => item.vis.clone(),
            Self::Impl(_) => syn::parse_quote!(pub),
        }
    }
}

/// A function of the item, and where it is in it.
pub(crate) struct Function<'a> {
    pub(crate) attributes: &'a mut Vec<Attribute>,
    pub(crate) signature: &'a Signature,
}

impl Item {
    /// The functions. What else a trait has is an error.
    pub(crate) fn functions(&mut self, errors: &mut Errors) -> Vec<Function<'_>> {
        match self {
            Self::Trait(item) => {
                let functions = item.items.iter_mut().filter_map(|item| match item {
                    TraitItem::Fn(TraitItemFn { attrs, sig, .. }) => {
                        Some(Function { attributes: attrs, signature: sig })
                    }
                    other => {
                        errors.push(Error::new(other.span(), "a service has only methods"));
                        None
                    }
                });
                functions.collect()
            }
            Self::Impl(item) => {
                let functions = item.items.iter_mut().filter_map(|item| match item {
                    ImplItem::Fn(ImplItemFn { attrs, sig, .. }) => Some(Function { attributes: attrs, signature: sig }),
                    _ => None,
                });
                functions.collect()
            }
        }
    }
}

/// Reads the attribute and the item.
pub(crate) fn service(attribute: TokenStream, item: TokenStream) -> Result<(Service, Errors)> {
    let mut errors = Errors::default();
    let item = match syn::parse2(item)? {
        syn::Item::Trait(item) => Item::Trait(item),
        syn::Item::Impl(item) => Item::Impl(item),
        other => return Err(Error::new(other.span(), "`#[service]` goes on a trait, or on an `impl` block of a type")),
    };

    let ident = match &item {
        Item::Trait(item) => trait_ident(item, &mut errors),
        Item::Impl(item) => impl_ident(item)?,
    };

    let mut krate: Path = syn::parse_quote!(::bothways);
    let mut path = ident.unraw().to_string();
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("name") {
            path = name(&meta)?;
        } else if meta.path.is_ident("crate") {
            krate = crate_path(&meta)?;
        } else {
            return Err(meta.error("`#[service]` knows `name = \"...\"` and `crate = \"...\"`"));
        }
        Ok(())
    });

    // A wrong argument is reported together with what is wrong in the item.
    errors.keep(parser.parse2(attribute));
    Ok((Service { krate, ident, path, item }, errors))
}

fn trait_ident(item: &ItemTrait, errors: &mut Errors) -> Ident {
    if !item.generics.params.is_empty() {
        let text = "a service has no generic parameters: the peer could not know what to put there";
        errors.push(Error::new(item.generics.span(), text));
    }
    if let Some(unsafety) = &item.unsafety {
        errors.push(Error::new(unsafety.span(), "a service is a safe trait"));
    }
    item.ident.clone()
}

fn impl_ident(item: &ItemImpl) -> Result<Ident> {
    if let Some((path, _)) = &item.trait_ {
        return Err(Error::new(path.span(), "put `#[service]` on the trait itself, or on an `impl` block of the type"));
    }
    if !item.generics.params.is_empty() {
        let text = "an `impl` block of a service has no generic parameters; put `#[service]` on a trait, which a generic type may implement";
        return Err(Error::new(item.generics.span(), text));
    }
    match &*item.self_ty {
        Type::Path(path) if path.qself.is_none() => {
            Ok(path.path.segments.last().expect("a path has a segment").ident.clone())
        }
        other => Err(Error::new(other.span(), "`#[service]` needs a type with a name")),
    }
}

/// What `#[rpc(...)]` says of a method.
#[derive(Default)]
pub(crate) struct Rpc {
    pub(crate) name: Option<String>,
    pub(crate) push: bool,
    pub(crate) skip: bool,
    /// Its payloads travel as serde has them, whether Go can read them or not.
    pub(crate) plain: bool,
}

/// Takes the `#[rpc]` attributes off a method.
pub(crate) fn rpc(attributes: &mut Vec<Attribute>) -> Result<Rpc> {
    let mut rpc = Rpc::default();

    for attribute in attributes.extract_if(.., |attribute| attribute.path().is_ident("rpc")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                rpc.name = Some(name(&meta)?);
            } else if meta.path.is_ident("push") {
                rpc.push = true;
            } else if meta.path.is_ident("skip") {
                rpc.skip = true;
            } else if meta.path.is_ident("plain") {
                rpc.plain = true;
            } else {
                return Err(meta.error("`#[rpc]` knows `name = \"...\"`, `push`, `skip` and `plain`"));
            }
            Ok(())
        })?;
    }

    Ok(rpc)
}

/// `name = "..."`.
fn name(meta: &ParseNestedMeta<'_>) -> Result<String> {
    let literal: LitStr = meta.value()?.parse()?;
    if literal.value().is_empty() {
        return Err(Error::new(literal.span(), "a name on the wire is not empty"));
    }
    Ok(literal.value())
}

/// `crate = "..."`.
pub(crate) fn crate_path(meta: &ParseNestedMeta<'_>) -> Result<Path> {
    let literal: LitStr = meta.value()?.parse()?;
    literal.parse_with(Path::parse_mod_style)
}
