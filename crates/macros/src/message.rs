//! `#[message]`: serde's derives, with the attributes that make them speak Go.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{
    Attribute, Error, Field, Fields, GenericArgument, Generics, Item, LitStr, Meta, Path, PathArguments, Result, Token,
    Type, parse::Parser, punctuated::Punctuated, spanned::Spanned,
};

use crate::parse;

pub(crate) fn message(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut krate: Path = syn::parse_quote!(::bothways);
    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("crate") {
            krate = parse::crate_path(&meta)?;
            return Ok(());
        }
        Err(meta.error("`#[message]` knows `crate = \"...\"`; what serde knows goes into `#[serde(...)]`"))
    });
    parser.parse2(attribute)?;
    let mut item: Item = syn::parse2(item)?;
    let (attributes, rename) = match &mut item {
        Item::Struct(item) => {
            let rules = Rules::new(&krate, &item.attrs, &item.generics);
            rules.fields(&mut item.fields)?;
            (&mut item.attrs, quote!(rename_all = "PascalCase"))
        }
        Item::Enum(item) => {
            let rules = Rules::new(&krate, &item.attrs, &item.generics);
            for variant in &mut item.variants {
                Said::take(&mut variant.attrs, false)?.rename(&mut variant.attrs);
                rules.fields(&mut variant.fields)?;
            }
            (&mut item.attrs, quote!(rename_all_fields = "PascalCase"))
        }
        other => return Err(Error::new(other.span(), "a message is a struct or an enum")),
    };
    let keys = serde_keys(attributes);
    let has = |key: &str| keys.iter().any(|known| known == key);
    let rename = (!has("rename_all") && !has("rename_all_fields") && !has("transparent")).then_some(rename);
    let serde = quote!(#krate::__private::serde);
    let serde_path = serde.to_string().replace(' ', "");
    // In front: a helper attribute belongs behind its derive.
    attributes.insert(0, syn::parse_quote!(#[derive(#serde::Serialize, #serde::Deserialize)]));
    attributes.insert(1, syn::parse_quote!(#[serde(crate = #serde_path, #rename)]));
    Ok(quote!(#item))
}

/// What holds for every field of a type.
struct Rules<'a> {
    krate: &'a Path,
    /// False if the type as a whole has a default, or wants none.
    default: bool,
    /// False for a generic type: serde would no longer see which bounds the field needs.
    nil_or_default: bool,
}

impl<'a> Rules<'a> {
    fn new(krate: &'a Path, attributes: &[Attribute], generics: &Generics) -> Self {
        let keys = serde_keys(attributes);
        let default = !keys.iter().any(|key| key == "default" || key == "transparent");
        Self { krate, default, nil_or_default: generics.type_params().next().is_none() }
    }

    fn fields(&self, fields: &mut Fields) -> Result<()> {
        let named = matches!(fields, Fields::Named(_));
        fields.iter_mut().try_for_each(|field| self.field(field, named))
    }

    fn field(&self, field: &mut Field, named: bool) -> Result<()> {
        let said = Said::take(&mut field.attrs, true)?;
        said.rename(&mut field.attrs);
        let keys = serde_keys(&field.attrs);
        let has = |key: &str| keys.iter().any(|known| known == key);
        if has("skip") || has("flatten") {
            return Ok(());
        }
        let own_way = has("with") || has("serialize_with") || has("deserialize_with") || has("borrow");
        let kind = if said.plain || own_way { None } else { Kind::of(&field.ty) };
        let defaults = named && self.default && !said.required && !has("default") && !has("skip_deserializing");
        let krate = self.krate;
        let span = field.ty.span();
        if let Some(kind) = &kind {
            let with = text(krate, kind.module(), span);
            field.attrs.push(syn::parse_quote!(#[serde(with = #with)]));
        }
        if defaults {
            let attribute = match default_function(&field.ty, kind.as_ref()) {
                Some(function) => {
                    let function = text(krate, function, span);
                    quote_spanned!(span=> #[serde(default = #function)])
                }
                None => quote_spanned!(span=> #[serde(default)]),
            };
            field.attrs.extend(Attribute::parse_outer.parse2(attribute)?);
            if self.nil_or_default && kind.is_none() && !own_way && !is_option(&field.ty) {
                let function = text(krate, "codec::nil_or_default", span);
                field.attrs.push(syn::parse_quote!(#[serde(deserialize_with = #function)]));
            }
        }
        Ok(())
    }
}

/// A path as serde wants it. What is wrong with it is said at `span`.
fn text(krate: &Path, rest: &str, span: Span) -> LitStr {
    LitStr::new(&format!("{}::{rest}", quote!(#krate).to_string().replace(' ', "")), span)
}

/// What `#[message(...)]` says on a field or a variant.
#[derive(Default)]
struct Said {
    rename: Option<LitStr>,
    required: bool,
    plain: bool,
}

impl Said {
    /// Takes the attributes off.
    fn take(attributes: &mut Vec<Attribute>, of_field: bool) -> Result<Self> {
        let mut said = Self::default();
        for attribute in attributes.extract_if(.., |attribute| attribute.path().is_ident("message")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("rename") {
                    said.rename = Some(meta.value()?.parse()?);
                } else if of_field && meta.path.is_ident("required") {
                    said.required = true;
                } else if of_field && meta.path.is_ident("plain") {
                    said.plain = true;
                } else if of_field {
                    return Err(meta.error("a field knows `rename = \"...\"`, `required` and `plain`"));
                } else {
                    return Err(meta.error("a variant knows `rename = \"...\"`"));
                }
                Ok(())
            })?;
        }
        Ok(said)
    }

    fn rename(&self, attributes: &mut Vec<Attribute>) {
        if let Some(name) = &self.rename {
            attributes.push(syn::parse_quote!(#[serde(rename = #name)]));
        }
    }
}

/// A type of Go's that has a helper.
enum Kind {
    Bytes,
    Time,
    Duration,
}

impl Kind {
    /// By the name of the type, or of what it contains.
    fn of(ty: &Type) -> Option<Self> {
        match ty {
            Type::Array(array) if is_byte(&array.elem) => Some(Self::Bytes),
            Type::Path(path) => {
                let last = path.path.segments.last()?;
                let within: Vec<&Type> = match &last.arguments {
                    PathArguments::AngleBracketed(arguments) => arguments.args.iter().filter_map(type_of).collect(),
                    _ => vec![],
                };
                match (last.ident.to_string().as_str(), &within[..]) {
                    ("Vec", [element]) if is_byte(element) => Some(Self::Bytes),
                    ("Box", [Type::Slice(slice)]) if is_byte(&slice.elem) => Some(Self::Bytes),
                    ("Bytes", []) => Some(Self::Bytes),
                    ("SystemTime", []) => Some(Self::Time),
                    ("Duration", []) => Some(Self::Duration),
                    ("Option" | "Vec", [element]) => Self::of(element),
                    ("HashMap" | "BTreeMap", [_, element, ..]) => Self::of(element),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn module(&self) -> &'static str {
        match self {
            Self::Bytes => "codec::bytes",
            Self::Time => "codec::time",
            Self::Duration => "codec::duration",
        }
    }
}

fn type_of(argument: &GenericArgument) -> Option<&Type> {
    match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}

fn is_byte(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("u8"))
}

fn is_option(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Option"))
}

/// What stands in for `Default`, where the type has none.
fn default_function(ty: &Type, kind: Option<&Kind>) -> Option<&'static str> {
    match (ty, kind?) {
        (Type::Array(_), Kind::Bytes) => Some("__private::zeros"),
        (Type::Path(path), Kind::Time) if path.path.segments.last()?.arguments.is_none() => {
            Some("codec::time::go_zero")
        }
        _ => None,
    }
}

/// The keys of every `#[serde(...)]`. One that cannot be read is serde's to complain about.
fn serde_keys(attributes: &[Attribute]) -> Vec<String> {
    let lists = attributes.iter().filter(|attribute| attribute.path().is_ident("serde"));
    let metas = lists.filter_map(|list| list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok());
    metas.flatten().filter_map(|meta| meta.path().get_ident().map(ToString::to_string)).collect()
}
