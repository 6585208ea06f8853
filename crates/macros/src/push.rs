//! The pushes of a service, for every kind of target: a type with a function for each.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use crate::{
    check::{Answer, Method},
    parse::Service,
};

/// Nothing for a service without pushes.
pub(crate) fn push(service: &Service, methods: &[Method]) -> TokenStream {
    let Service { krate, ident, path, item } = service;
    let pushes: Vec<&Method> =
        methods.iter().filter(|method| matches!(method.answer, Answer::Nothing { .. })).collect();
    if pushes.is_empty() {
        return quote!();
    }

    let visibility = item.visibility();
    let name = format_ident!("{ident}Push");
    let functions = pushes.iter().map(|method| {
        let Method { ident, wire_name, cfgs, docs, argument, .. } = method;
        let (parameter, (ty, value)) = match argument {
            Some(argument) => {
                let (name, ty) = (&argument.ident, argument.taken());
                (quote!(#name: &#ty), argument.sent(krate))
            }
            None => (quote!(), (quote!(()), quote!(&()))),
        };

        let made = format!("A tracked push of `{wire_name}`.");
        quote! {
            #(#cfgs)* #[doc = #made]
            ///
            #(#docs)*
            ///
            /// # Errors
            /// What the codec says.
            #visibility fn #ident(#parameter) -> ::std::result::Result<#krate::Push, #krate::codec::CodecError> {
                #krate::Push::of::<#ty>(#path, #wire_name, #value)
            }
        }
    });

    let docs = format!("Makes the pushes of the service `{path}`, for users, topics and other targets of a server.");
    quote! {
        #[doc = #docs]
        #[derive(Clone, Copy, Debug)]
        #[allow(dead_code, unreachable_pub)]
        #visibility enum #name {}

        #[allow(dead_code, private_interfaces, unreachable_pub, clippy::ptr_arg)]
        impl #name {
            #(#functions)*
        }
    }
}
