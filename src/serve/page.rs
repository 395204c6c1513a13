//! The page at `/`: its files, inside of the program. They load nothing from elsewhere and run nothing that stands in them.

use hyper::header::HeaderValue;

/// What a browser may do with the page: load these files, ask this server, and nothing else. Text from the server cannot
/// become markup or code, also where the page's own script had a fault.
pub(super) const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

/// A file of the page.
#[derive(Debug, PartialEq)]
pub(super) struct File {
    pub(super) kind: &'static str,
    pub(super) text: &'static str,
}

const FILES: [(&str, File); 4] = [
    ("", File { kind: "text/html; charset=utf-8", text: include_str!("page/page.html") }),
    ("/page.css", File { kind: "text/css; charset=utf-8", text: include_str!("page/page.css") }),
    ("/page.js", File { kind: "text/javascript; charset=utf-8", text: include_str!("page/page.js") }),
    ("/icon.svg", File { kind: "image/svg+xml", text: include_str!("page/icon.svg") }),
];

/// The file at this path, without a slash at its end.
pub(super) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, file)| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_bring_no_code_in_and_name_no_other_place() {
        for (name, File { text, .. }) in &FILES {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("://"), "{name} names another place");
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", "onclick"]
            {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
            assert!(text.lines().count() <= 700, "{name} is not read in one sitting");
        }
        let (html, scripts) = (FILES[0].1.text, FILES[0].1.text.matches("<script").count());
        assert!(scripts == 1 && html.contains(r#"<script src="page.js" defer></script>"#) && !html.contains("<style"));
    }
}
