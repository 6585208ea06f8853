//! `#[message]`: serde's derives, with the attributes that make them speak Go.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{
    Attribute, Error, Field, Fields, GenericArgument, Generics, Ident, Item, LitStr, Meta, Path, PathArguments, Result,
    Token, Type, parse::Parser, punctuated::Punctuated, spanned::Spanned,
};

use crate::parse;

mod direct;
mod names;
mod shape;

pub(crate) fn message(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut krate: Path = syn::parse_quote!(::bothways);
    let mut json_rule: Option<LitStr> = None;
    let mut strict: Option<Span> = None;

    let parser = syn::meta::parser(|meta| {
        if meta.path.is_ident("crate") {
            krate = parse::crate_path(&meta)?;
        } else if meta.path.is_ident("json") {
            json_rule = Some(meta.value()?.parse()?);
        } else if meta.path.is_ident("strict") {
            strict = Some(meta.path.span());
        } else {
            let text = "`#[message]` knows `json = \"...\"`, `strict` and `crate = \"...\"`; what serde knows goes into \
                        `#[serde(...)]`";
            return Err(meta.error(text));
        }
        Ok(())
    });
    parser.parse2(attribute)?;
    let mut item: Item = syn::parse2(item)?;
    if let Some(strict) = strict {
        refuse_unknown_fields(&mut item, strict)?;
    }

    let shape = shape::shape(&krate, &item)?;
    let serde = quote!(#krate::__private::serde);

    if json_rule.is_some() || names::has_json_names(&item) {
        let item = names::message(&krate, &item, json_rule.as_ref())?;
        return Ok(quote!(#item #shape));
    }
    if let Some(plan) = names::plan(&krate, &item)? {
        let item = names::direct_message(&krate, &item, &plan)?;
        return Ok(quote!(#item #shape));
    }

    let mut item = with_serde_attributes(&krate, item, Form::Every)?;
    // In front: a helper attribute belongs after its derive.
    attributes_of(&mut item).insert(0, syn::parse_quote!(#[derive(#serde::Serialize, #serde::Deserialize)]));
    Ok(quote!(#item #shape))
}

/// For `strict`: a name that no field has is an error where the message is read.
fn refuse_unknown_fields(item: &mut Item, strict: Span) -> Result<()> {
    let fields: Vec<&Field> = match &*item {
        Item::Struct(item) => item.fields.iter().collect(),
        Item::Enum(item) => item.variants.iter().flat_map(|variant| &variant.fields).collect(),
        // Said below.
        _ => return Ok(()),
    };

    let is_flat = |field: &&&Field| serde_keys(&field.attrs).iter().any(|key| key == "flatten");
    if let Some(flat) = fields.iter().find(is_flat) {
        let text = "a field with `flatten` takes what the others do not: a message with one cannot be `strict`";
        return Err(Error::new(flat.span(), text));
    }
    if !fields.iter().any(|field| field.ident.is_some()) && !is_empty_struct(item) {
        return Err(Error::new(strict, "`strict` is for messages whose fields have names"));
    }

    let attributes = attributes_of(item);
    if !serde_keys(attributes).iter().any(|key| key == "deny_unknown_fields") {
        attributes.push(syn::parse_quote!(#[serde(deny_unknown_fields)]));
    }
    Ok(())
}

fn is_empty_struct(item: &Item) -> bool {
    matches!(item, Item::Struct(item) if matches!(&item.fields, Fields::Named(named) if named.named.is_empty()))
}

/// Which codecs the names of fields are for.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// All of them: there are no others.
    Every,
    /// Those that are no text.
    Binary,
    /// JSON, with a rule for the names that were not given.
    Json(Option<&'a LitStr>),
}

/// The item with what serde needs to be told; all but the derives.
fn with_serde_attributes(krate: &Path, mut item: Item, form: Form<'_>) -> Result<Item> {
    let (rule, of_fields) = match &mut item {
        Item::Struct(item) => {
            let rules = Rules::new(krate, &item.attrs, &item.generics, form);
            rules.fields(&mut item.fields)?;
            ("rename_all", false)
        }
        Item::Enum(item) => {
            let rules = Rules::new(krate, &item.attrs, &item.generics, form);
            for variant in &mut item.variants {
                Said::take(&mut variant.attrs, false)?.rename(&mut variant.attrs, form);
                rules.fields(&mut variant.fields)?;
            }
            ("rename_all_fields", true)
        }
        other => return Err(Error::new(other.span(), "a message is a struct or an enum")),
    };

    let attributes = attributes_of(&mut item);
    let mut rename = None;
    if let Form::Json(Some(given)) = form {
        let rules: &[&str] = if of_fields { &["rename_all_fields"] } else { &["rename_all"] };
        names::remove_serde(attributes, rules);
        rename = Some(given.clone());
    }

    let keys = serde_keys(attributes);
    let has = |key: &str| keys.iter().any(|known| known == key);
    if rename.is_none() && !has("rename_all") && !has("rename_all_fields") && !has("transparent") {
        rename = Some(LitStr::new("PascalCase", Span::call_site()));
    }

    let serde_path = quote!(#krate::__private::serde).to_string().replace(' ', "");
    let rule = Ident::new(rule, Span::call_site());
    let rename = rename.map(|rename| quote!(#rule = #rename));
    attributes.insert(0, syn::parse_quote!(#[serde(crate = #serde_path, #rename)]));
    Ok(item)
}

/// Those of the type itself.
fn attributes_of(item: &mut Item) -> &mut Vec<Attribute> {
    match item {
        Item::Struct(item) => &mut item.attrs,
        Item::Enum(item) => &mut item.attrs,
        _ => unreachable!("a message is a struct or an enum"),
    }
}

/// What holds for every field of a type.
struct Rules<'a> {
    krate: &'a Path,
    form: Form<'a>,
    /// False if the type as a whole has a default, or wants none.
    default: bool,
    /// False for a generic type: serde would no longer see which bounds the field needs.
    nil_or_default: bool,
}

impl<'a> Rules<'a> {
    fn new(krate: &'a Path, attributes: &[Attribute], generics: &Generics, form: Form<'a>) -> Self {
        let keys = serde_keys(attributes);
        let default = !keys.iter().any(|key| key == "default" || key == "transparent");
        Self { krate, form, default, nil_or_default: generics.type_params().next().is_none() }
    }

    fn fields(&self, fields: &mut Fields) -> Result<()> {
        let named = matches!(fields, Fields::Named(_));
        fields.iter_mut().try_for_each(|field| self.field(field, named))
    }

    fn field(&self, field: &mut Field, named: bool) -> Result<()> {
        let said = Said::take(&mut field.attrs, true)?;
        said.rename(&mut field.attrs, self.form);
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
    LitStr::new(&text_of(krate, rest), span)
}

fn text_of(krate: &Path, rest: &str) -> String {
    format!("{}::{rest}", quote!(#krate).to_string().replace(' ', ""))
}

/// What `#[message(...)]` says on a field or a variant.
#[derive(Default)]
struct Said {
    rename: Option<LitStr>,
    json: Option<LitStr>,
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
                } else if meta.path.is_ident("json") {
                    said.json = Some(meta.value()?.parse()?);
                } else if of_field && meta.path.is_ident("required") {
                    said.required = true;
                } else if of_field && meta.path.is_ident("plain") {
                    said.plain = true;
                } else if of_field {
                    return Err(
                        meta.error("a field knows `rename = \"...\"`, `json = \"...\"`, `required` and `plain`")
                    );
                } else {
                    return Err(meta.error("a variant knows `rename = \"...\"` and `json = \"...\"`"));
                }
                Ok(())
            })?;
        }

        Ok(said)
    }

    fn rename(&self, attributes: &mut Vec<Attribute>, form: Form<'_>) {
        let json = self.json.as_ref().filter(|_| matches!(form, Form::Json(_)));
        if json.is_some() {
            names::remove_serde(attributes, &["rename"]);
        }
        if let Some(name) = json.or(self.rename.as_ref()) {
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
        match ungrouped(ty) {
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
        GenericArgument::Type(ty) => Some(ungrouped(ty)),
        _ => None,
    }
}

/// The type itself: one that a `macro_rules` macro passes on is in a group that nobody sees.
pub(crate) fn ungrouped(mut ty: &Type) -> &Type {
    loop {
        ty = match ty {
            Type::Group(group) => &group.elem,
            Type::Paren(paren) => &paren.elem,
            _ => return ty,
        };
    }
}

pub(crate) fn is_byte(ty: &Type) -> bool {
    matches!(ungrouped(ty), Type::Path(path) if path.path.is_ident("u8"))
}

fn is_option(ty: &Type) -> bool {
    matches!(ungrouped(ty), Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "Option"))
}

/// What stands in for `Default`, where the type has none.
fn default_function(ty: &Type, kind: Option<&Kind>) -> Option<&'static str> {
    match (ungrouped(ty), kind?) {
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
