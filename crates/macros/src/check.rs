//! Which functions are methods of the service, and why the others cannot be.

use std::collections::HashMap;

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote_spanned};
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, Pat, Path, PathArguments, ReceiverKind, Result, ReturnType,
    Signature, Type, TypeReference, ext::IdentExt, spanned::Spanned,
};

use crate::{
    argument::Argument,
    message::ungrouped,
    parse::{self, Errors, Item, Rpc, Service},
};

/// A method that goes over the wire.
pub(crate) struct Method {
    pub(crate) ident: Ident,
    /// What requests call it.
    pub(crate) wire_name: String,
    /// `#[cfg]`, which all that is generated for it carries too.
    pub(crate) cfgs: Vec<Attribute>,
    /// Its documentation and deprecation, for the stub.
    pub(crate) docs: Vec<Attribute>,
    /// True if Go need not be able to read its argument and its reply.
    pub(crate) plain: bool,
    /// True if it wants the context.
    pub(crate) context: bool,
    /// Its one argument.
    pub(crate) argument: Option<Argument>,
    pub(crate) answer: Answer,
}

/// What the caller gets.
pub(crate) enum Answer {
    /// A reply.
    Reply(Reply),
    /// Nothing: it is oneway. `fallible` if the method returns a `Result` all the same.
    Nothing { fallible: bool },
}

/// The reply of a method, by what it returns.
pub(crate) enum Reply {
    /// The first parameter of a `Result<Reply, Error>`.
    Written(Box<Type>),
    /// Whatever the return type, an alias, is a `Result` of.
    Alias(Box<Type>),
}

impl Reply {
    /// Its type.
    pub(crate) fn ty(&self, krate: &Path) -> TokenStream {
        match self {
            Self::Written(ty) => ty.to_token_stream(),
            Self::Alias(output) => quote_spanned!(output.span()=> #krate::__private::ReplyOf<#output>),
        }
    }

    pub(crate) fn span(&self) -> Span {
        let (Self::Written(ty) | Self::Alias(ty)) = self;
        ty.span()
    }
}

/// Checks every function. Takes the `#[rpc]` attributes off.
pub(crate) fn methods(service: &mut Service, errors: &mut Errors) -> Vec<Method> {
    let of_trait = matches!(service.item, Item::Trait(_));
    let mut methods = Vec::new();

    for function in service.item.functions(errors) {
        let Some(rpc) = errors.keep(parse::rpc(function.attributes)) else {
            continue;
        };
        if rpc.skip && of_trait {
            let text = "a trait's methods are what the peer may call: `skip` is for `impl` blocks";
            errors.push(Error::new(function.signature.ident.span(), text));
        }

        // An `impl` block may hold helpers; in a trait they are errors, and `method` says so.
        let signature = function.signature;
        let other = signature.asyncness.is_none() || signature.receiver().is_none();
        if rpc.skip || (other && !of_trait) {
            continue;
        }

        if let Some(mut method) = errors.keep(method(rpc, signature)) {
            // A `cfg` must remove what is generated too; docs and deprecation show at the stub.
            for attribute in function.attributes.iter() {
                let path = attribute.path();
                if path.is_ident("cfg") {
                    method.cfgs.push(attribute.clone());
                } else if path.is_ident("doc") || path.is_ident("deprecated") {
                    method.docs.push(attribute.clone());
                }
            }
            methods.push(method);
        }
    }

    collisions(&methods, of_trait, errors);
    methods
}

fn method(rpc: Rpc, signature: &Signature) -> Result<Method> {
    let Signature { asyncness, ident, fn_token, generics, inputs, output, .. } = signature;
    if asyncness.is_none() {
        return Err(Error::new(fn_token.span(), "a method of a service is async: write `async fn`"));
    }

    let plain = signature.constness.is_none() && signature.abi.is_none() && signature.variadic.is_none();
    if !plain || !signature.safety.to_token_stream().is_empty() {
        return Err(Error::new(ident.span(), "a method of a service is a plain `async fn`"));
    }

    if !generics.params.is_empty() || generics.where_clause.is_some() {
        let span = if generics.params.is_empty() { generics.where_clause.span() } else { generics.span() };
        let text = "a method of a service has no generic parameters: the peer could not know what to put there";
        return Err(Error::new(span, text));
    }

    receiver(signature)?;
    let (context, argument) = arguments(inputs.iter().skip(1))?;
    let answer = answer(&rpc, ident, output)?;

    let plain = rpc.plain;
    let wire_name = rpc.name.unwrap_or_else(|| pascal_case(&ident.unraw().to_string()));
    Ok(Method { ident: ident.clone(), wire_name, cfgs: vec![], docs: vec![], plain, context, argument, answer })
}

fn receiver(signature: &Signature) -> Result<()> {
    let text = "a method of a service takes `&self`: many calls run at the same time";
    match signature.receiver() {
        None => Err(Error::new(signature.paren_token.span.join(), text)),
        Some(receiver) => match &receiver.kind {
            ReceiverKind::Reference(_, _, None) => Ok(()),
            _ => Err(Error::new(receiver.span(), text)),
        },
    }
}

fn arguments<'a>(inputs: impl Iterator<Item = &'a FnArg>) -> Result<(bool, Option<Argument>)> {
    let mut context = false;
    let mut argument = None;

    for input in inputs {
        let FnArg::Typed(input) = input else {
            return Err(Error::new(input.span(), "`self` comes first"));
        };
        match ungrouped(&input.ty) {
            ty if is_context(ty) => {
                if context || argument.is_some() {
                    return Err(Error::new(input.span(), "the context comes once, behind `&self`"));
                }
                context = true;
            }
            Type::Reference(TypeReference { elem, mutability: None, .. }) if is_named(elem, "Context") => {
                return Err(Error::new(input.ty.span(), "write `&mut Context`"));
            }
            ty if argument.is_some() => {
                let text = "a method of a service takes one argument, as in rpcx: make a struct of them";
                return Err(Error::new(input.pat.span().join(ty.span()).unwrap_or(input.pat.span()), text));
            }
            ty => {
                nameable(ty)?;
                // Another pattern has no name that the stub could show.
                let ident = match &*input.pat {
                    Pat::Ident(pat) if pat.ident != "self" => pat.ident.clone(),
                    _ => Ident::new("args", Span::call_site()),
                };

                argument = Some(Argument::new(ident, ty)?);
            }
        }
    }

    Ok((context, argument))
}

fn answer(rpc: &Rpc, ident: &Ident, output: &ReturnType) -> Result<Answer> {
    let ty = match output {
        ReturnType::Default => return Ok(Answer::Nothing { fallible: false }),
        ReturnType::Type(_, ty) if is_unit(ty) => return Ok(Answer::Nothing { fallible: false }),
        ReturnType::Type(_, ty) => ty,
    };

    let reply = reply_of(ty)?;
    if rpc.push {
        return match &reply {
            Reply::Written(reply) if !is_unit(reply) => {
                let text = format!("`{ident}` is a push, which has no reply: return `Result<(), Error>` or nothing");
                Err(Error::new(reply.span(), text))
            }
            _ => Ok(Answer::Nothing { fallible: true }),
        };
    }

    let (Reply::Written(named) | Reply::Alias(named)) = &reply;
    nameable(named)?;
    Ok(Answer::Reply(reply))
}

/// The stub writes the type down where there is no `Self`, and where it cannot be left open.
fn nameable(ty: &Type) -> Result<()> {
    fn find(tokens: proc_macro2::TokenStream) -> Option<(Span, &'static str)> {
        tokens.into_iter().find_map(|token| match token {
            TokenTree::Ident(ident) if ident == "Self" => Some((ident.span(), "`Self` means another type there")),
            TokenTree::Ident(ident) if ident == "impl" => Some((ident.span(), "`impl` leaves it open")),
            TokenTree::Group(group) => find(group.stream()),
            _ => None,
        })
    }
    match find(ty.to_token_stream()) {
        Some((span, why)) => Err(Error::new(span, format!("name the type, which the stub uses too: {why}"))),
        None => Ok(()),
    }
}

fn is_context(ty: &Type) -> bool {
    matches!(ty, Type::Reference(TypeReference { elem, mutability: Some(_), .. }) if is_named(elem, "Context"))
}

fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ungrouped(ty), Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}

fn is_unit(ty: &Type) -> bool {
    matches!(ungrouped(ty), Type::Tuple(tuple) if tuple.elems.is_empty())
}

/// The reply of a return type. A name that is no `Result` may be an alias of one: the compiler knows.
fn reply_of(output: &Type) -> Result<Reply> {
    let no_result = || {
        let text = "a method of a service returns `Result<Reply, Error>`, or nothing if it is a push";
        Err(Error::new(output.span(), text))
    };
    let Type::Path(path) = ungrouped(output) else {
        return no_result();
    };
    let Some(last) = path.path.segments.last() else {
        return no_result();
    };
    if NO_RESULTS.iter().any(|name| last.ident == name) {
        return no_result();
    }

    match &last.arguments {
        PathArguments::AngleBracketed(arguments) if last.ident == "Result" && arguments.args.len() == 2 => {
            match arguments.args.first() {
                Some(GenericArgument::Type(reply)) => Ok(Reply::Written(Box::new(reply.clone()))),
                _ => no_result(),
            }
        }
        // An alias, most likely: the compiler finds the `Result` behind it.
        _ => Ok(Reply::Alias(Box::new(output.clone()))),
    }
}

/// Names that nobody gives an alias of `Result`: for these the error is ours.
const NO_RESULTS: [&str; 20] = [
    "bool", "char", "f32", "f64", "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128",
    "usize", "Option", "String", "Vec", "Self",
];

/// Names that are there twice: on the wire, or in the stub.
fn collisions(methods: &[Method], of_trait: bool, errors: &mut Errors) {
    let mut on_the_wire: HashMap<&str, &Ident> = HashMap::new();
    let idents: HashMap<String, &Ident> = methods.iter().map(|m| (m.ident.unraw().to_string(), &m.ident)).collect();

    for method in methods {
        let ident = &method.ident;
        // A method with a `cfg` may be the alternative of the other: only one of them is built.
        if let Some(other) = on_the_wire.insert(&method.wire_name, ident)
            && method.cfgs.is_empty()
        {
            let name = &method.wire_name;
            let text = format!(
                "`{other}` and `{ident}` are both `{name}` on the wire: `#[rpc(name = \"...\")]` tells them apart"
            );
            errors.push(Error::new(ident.span(), text));
        }

        if let Some(with) = idents.get(&format!("{}_with", ident.unraw())) {
            let text = format!(
                "the stub has a `{with}` for `{ident}` already: rename the method; `#[rpc(name = \"...\")]` keeps its name on the wire"
            );
            errors.push(Error::new(with.span(), text));
        }

        let taken = ["new", "at", "caller"].iter().any(|taken| ident == taken) || (of_trait && ident == "into_service");
        if taken {
            let text = format!(
                "`{ident}` is a method of what is generated: rename it; `#[rpc(name = \"...\")]` keeps its name on the wire"
            );
            errors.push(Error::new(ident.span(), text));
        }
    }
}

/// `find_user` → `FindUser`.
fn pascal_case(name: &str) -> String {
    let mut pascal = String::with_capacity(name.len());
    for word in name.split('_') {
        let mut letters = word.chars();
        pascal.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        pascal.push_str(letters.as_str());
    }
    pascal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_called_in_pascal_case_on_the_wire() {
        let names = [("mul", "Mul"), ("find_user", "FindUser"), ("v2_list", "V2List"), ("_x", "X"), ("über", "Über")];
        for (name, wire) in names {
            assert_eq!(pascal_case(name), wire);
        }
    }
}
