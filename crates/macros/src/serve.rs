//! The serving side: the item itself, made fit for many threads, and a `Service` over it.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{FnArg, Ident, ItemTrait, Path, ReturnType, TraitItem};

use crate::{
    argument::Argument,
    check::{Answer, Method},
    parse::{Item, Service},
};

/// The item as the user wrote it, except that a trait's futures are `Send`.
pub(crate) fn item(service: Service) -> TokenStream {
    let wrapper = format_ident!("{}Service", service.ident);
    let mut item = match service.item {
        Item::Impl(item) => return quote!(#item),
        Item::Trait(item) => item,
    };

    // Calls on several threads share one value of it.
    item.colon_token.get_or_insert_default();
    item.supertraits.push(syn::parse_quote!(::core::marker::Send));
    item.supertraits.push(syn::parse_quote!(::core::marker::Sync));
    item.supertraits.push(syn::parse_quote!('static));

    for function in &mut item.items {
        let TraitItem::Fn(function) = function else {
            continue;
        };

        // A future that is `Send`, written out: an `async fn` in a trait promises no such bound.
        function.sig.asyncness = None;
        let output = match &function.sig.output {
            ReturnType::Default => quote!(()),
            ReturnType::Type(_, ty) => quote!(#ty),
        };
        function.sig.output =
            syn::parse_quote!(-> impl ::core::future::Future<Output = #output> + ::core::marker::Send);

        if let Some(body) = &function.default {
            function.default = Some(syn::parse_quote!({ async move #body }));
            function.attrs.push(syn::parse_quote!(#[allow(clippy::manual_async_fn)]));
        }
    }

    item.items.push(syn::parse_quote! {
        /// Ready to be registered with a router, a server or a client.
        fn into_service(self) -> #wrapper<Self>
        where
            Self: ::core::marker::Sized,
        {
            #wrapper(self)
        }
    });

    let shared = shared(&item);
    quote!(#item #shared)
}

/// The trait for an `Arc` of what implements it, so that a program keeps hold of what it serves.
fn shared(item: &ItemTrait) -> TokenStream {
    let ident = &item.ident;
    let functions = item.items.iter().filter_map(|item| match item {
        TraitItem::Fn(function) if function.sig.ident != "into_service" => Some(function),
        _ => None,
    });
    let functions = functions.map(|function| {
        let cfgs = function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
        // Names of its own: a pattern such as `_` cannot be passed on.
        let (mut sig, mut names) = (function.sig.clone(), Vec::new());
        for input in sig.inputs.iter_mut() {
            let FnArg::Typed(input) = input else { continue };
            let name: Ident = format_ident!("__argument_{}", names.len());
            input.attrs.clear();
            *input.pat = syn::parse_quote!(#name);
            names.push(name);
        }

        let name = &sig.ident;
        quote! {
            #(#cfgs)*
            #sig {
                <__T as #ident>::#name(&**self #(, #names)*)
            }
        }
    });

    quote! {
        #[automatically_derived]
        #[allow(deprecated, clippy::ptr_arg)]
        impl<__T: #ident> #ident for ::std::sync::Arc<__T> {
            #(#functions)*
        }
    }
}

/// The implementation of `Service`, on a wrapper if the item is a trait.
pub(crate) fn serve(service: &Service, methods: &[Method]) -> TokenStream {
    let Service { krate, ident, path, item } = service;
    let count = methods.len();
    let checks = methods.iter().filter(|method| !method.plain).map(|method| checks(krate, method));
    let checks: TokenStream = checks.collect();

    let (wrapper, header, receiver, target) = match item {
        Item::Trait(item) => {
            let (visibility, wrapper) = (&item.vis, format_ident!("{ident}Service"));
            let docs = format!("A [`{ident}`], ready to be registered.");
            let wrapper_item = quote! {
                #[doc = #docs]
                #[derive(Clone, Debug)]
                #[allow(dead_code, unreachable_pub)]
                #visibility struct #wrapper<T>(pub T);
            };
            let header = quote!(impl<T: #ident> #krate::Service for #wrapper<T>);
            (Some(wrapper_item), header, quote!(&service.0), quote!(<T as #ident>))
        }
        Item::Impl(item) => {
            let ty = &item.self_ty;
            (None, quote!(impl #krate::Service for #ty), quote!(&*service), quote!(<#ty>))
        }
    };

    let methods = methods.iter().map(|method| {
        let (cfgs, wire_name) = (&method.cfgs, &method.wire_name);
        let handler = handler(service, method, &target, &receiver);
        quote! {
            #(#cfgs)*
            methods.push((#wire_name, #handler));
        }
    });

    quote! {
        #wrapper
        #checks

        #[allow(deprecated)]
        #header {
            fn name(&self) -> &str {
                #path
            }

            fn into_methods(
                self: ::std::sync::Arc<Self>,
            ) -> ::std::vec::Vec<(&'static str, #krate::handler::BoxHandler)> {
                #[allow(unused_variables)]
                let service = self;
                #[allow(unused_mut)]
                let mut methods = ::std::vec::Vec::with_capacity(#count);
                #(#methods)*
                methods
            }
        }
    }
}

fn handler(service: &Service, method: &Method, target: &TokenStream, receiver: &TokenStream) -> TokenStream {
    let krate = &service.krate;
    let ident = &method.ident;
    let (argument_ty, span) = match &method.argument {
        Some(argument) => (argument.decoded(krate), argument.span()),
        None => (quote!(()), ident.span()),
    };

    // At the type's own place, so that "is not a `Payload`" is said there.
    let typed = quote_spanned!(span=> #krate::Request::into_typed::<#argument_ty>(request));
    let context = method.context.then(|| quote!(&mut context,));
    let argument = method.argument.as_ref().map(Argument::passed);
    let call = quote!(#target::#ident(#receiver, #context #argument).await);

    // An error that is `Serialize` goes with its text. The references are what tells it from others.
    let tell = quote! {
        if let ::std::result::Result::Err(error) = &outcome {
            #[allow(unused_imports)]
            use #krate::__private::{TextOnly as _, WithValue as _};
            (&#krate::__private::Failed(error)).tell(&mut context);
        }
    };

    // The call borrows the context that `into_reply` takes, so it is a statement of its own.
    let outcome = match &method.answer {
        Answer::Nothing { fallible: false } => quote! {{
            #call;
            #krate::Context::into_reply(context, ::std::result::Result::<(), ::std::convert::Infallible>::Ok(()))
        }},
        Answer::Reply(reply) => {
            let ty = reply.ty(krate);
            let into_reply = quote_spanned!(reply.span()=> #krate::Context::into_reply::<#ty, _>);
            quote! {{
                let outcome = #krate::__private::Outcome::into_result(#call);
                #tell
                #into_reply(context, outcome)
            }}
        }
        Answer::Nothing { fallible: true } => quote! {{
            let outcome = #krate::__private::Outcome::into_result(#call);
                #tell
            #krate::Context::into_reply::<(), _>(context, outcome)
        }},
    };

    quote! {
        #krate::handler::BoxHandler::new({
            let service = ::core::clone::Clone::clone(&service);
            move |request: #krate::Request| {
                let service = ::core::clone::Clone::clone(&service);
                async move {
                    #[allow(unused_mut, unused_variables)]
                    let (mut context, argument) = match #typed {
                        ::std::result::Result::Ok(typed) => typed,
                        ::std::result::Result::Err(refusal) => return refusal,
                    };
                    #outcome
                }
            }
        })
    }
}

/// Refuses to compile where Go cannot read the argument or the reply.
fn checks(krate: &Path, method: &Method) -> TokenStream {
    let reply = match &method.answer {
        Answer::Reply(reply) => Some((reply.ty(krate), reply.span())),
        Answer::Nothing { .. } => None,
    };
    let argument = method.argument.iter().map(|argument| (argument.decoded(krate), argument.span()));
    let types = argument.chain(reply);
    let cfgs = &method.cfgs;

    let checks = types.map(|(ty, span)| {
        quote_spanned! {span=>
            #(#cfgs)*
            #[allow(deprecated, unused_imports)]
            const _: () = {
                use #krate::__private::go::Trusted as _;

                const __VERDICT: #krate::__private::go::Verdict = <#krate::__private::go::Probe<#ty>>::AT_8;
                const __LEN: usize = #krate::__private::go::Fault::len(__VERDICT);
                const __TEXT: [u8; __LEN] = #krate::__private::go::Fault::text(__VERDICT);
                if __LEN != 0 {
                    match ::core::str::from_utf8(&__TEXT) {
                        ::core::result::Result::Ok(text) => ::core::panic!("{}", text),
                        ::core::result::Result::Err(_) => ::core::panic!("Go cannot read this"),
                    }
                }
            };
        }
    });
    checks.collect()
}
