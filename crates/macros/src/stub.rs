//! The calling side: a struct over a `Caller`, with the service's methods.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};

use crate::{
    check::{Answer, Method},
    parse::{Item, Service},
};

pub(crate) fn stub(service: &Service, methods: &[Method]) -> TokenStream {
    let Service { krate, ident, path, item } = service;
    let visibility = item.visibility();
    let client = format_ident!("{ident}Client");
    let functions = methods.iter().map(|method| functions(service, method));

    let what = match item {
        Item::Trait(_) => format!("Calls the methods of a [`{ident}`] at the other end of a connection."),
        Item::Impl(_) => format!("Calls the methods of the service `{path}` at the other end of a connection."),
    };

    quote! {
        #[doc = #what]
        ///
        /// Over any caller: a client, or a server's connection to one of its clients.
        #[derive(Clone, Debug)]
        #[allow(dead_code, unreachable_pub)]
        #visibility struct #client<C> {
            caller: C,
            service_path: ::std::borrow::Cow<'static, str>,
        }

        #[allow(dead_code, private_interfaces, unreachable_pub, clippy::ptr_arg)]
        impl<C: #krate::Caller> #client<C> {
            #[doc = concat!("A stub that calls the service `", #path, "`.")]
            #visibility fn new(caller: C) -> Self {
                Self { caller, service_path: ::std::borrow::Cow::Borrowed(#path) }
            }

            /// A stub that calls the same methods of a service of another name.
            #visibility fn at(caller: C, service_path: impl ::std::convert::Into<::std::string::String>) -> Self {
                Self { caller, service_path: ::std::borrow::Cow::Owned(service_path.into()) }
            }

            /// What it calls through.
            #visibility fn caller(&self) -> &C {
                &self.caller
            }

            #(#functions)*
        }
    }
}

/// A method, and its variant with options.
fn functions(service: &Service, method: &Method) -> TokenStream {
    let krate = &service.krate;
    let visibility = service.item.visibility();
    let Method { ident, wire_name, cfgs, docs, argument, answer, .. } = method;
    let with = format_ident!("{ident}_with");

    let (parameter, (ty, value)) = match argument {
        Some(argument) => {
            let (name, ty) = (&argument.ident, argument.taken());
            (quote!(#name: &#ty,), argument.sent(krate))
        }
        None => (quote!(), (quote!(()), quote!(&()))),
    };
    let passed = argument.as_ref().map(|argument| {
        let name = &argument.ident;
        quote!(#name,)
    });

    let no_docs = docs.iter().all(|attribute| !attribute.path().is_ident("doc")).then(|| {
        let text = match answer {
            Answer::Reply(_) => format!("Calls `{wire_name}` and waits for the reply."),
            Answer::Nothing { .. } => format!("Sends `{wire_name}` oneway: returns as soon as it is queued."),
        };
        quote!(#[doc = #text])
    });
    let with_docs = format!("As `{ident}`, with a deadline, metadata and the like.");

    // The parameter's name is the user's: ours must not be the same.
    match answer {
        Answer::Reply(reply) => {
            let reply = reply.ty(krate);
            quote! {
            #(#cfgs)* #no_docs #(#docs)*
            #visibility async fn #ident(&self, #parameter) -> ::std::result::Result<#reply, #krate::CallError> {
                let __response = self.#with(#passed #krate::CallOptions::new()).await?;
                ::std::result::Result::Ok(__response.value)
            }

            #(#cfgs)* #[doc = #with_docs]
            #visibility async fn #with(
                &self,
                #parameter
                __options: #krate::CallOptions,
            ) -> ::std::result::Result<#krate::Response<#reply>, #krate::CallError> {
                #krate::Caller::call_typed::<#ty, #reply>(&self.caller, &self.service_path, #wire_name, #value, __options).await
            }
            }
        }
        Answer::Nothing { .. } => quote! {
            #(#cfgs)* #no_docs #(#docs)*
            #visibility async fn #ident(&self, #parameter) -> ::std::result::Result<(), #krate::PushError> {
                self.#with(#passed #krate::CallOptions::new()).await
            }

            #(#cfgs)* #[doc = #with_docs]
            #visibility async fn #with(
                &self,
                #parameter
                __options: #krate::CallOptions,
            ) -> ::std::result::Result<(), #krate::PushError> {
                #krate::Caller::push_typed::<#ty>(&self.caller, &self.service_path, #wire_name, #value, __options).await
            }
        },
    }
}
