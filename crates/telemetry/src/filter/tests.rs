//! Filter patterns: the examples of the service's documentation, errors, and a model for terms.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(pattern: &str, yes: &[&str], no: &[&str]) {
    let parsed = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
    for message in yes {
        assert!(parsed.matches(message), "{pattern} should match {message}");
    }
    for message in no {
        assert!(!parsed.matches(message), "{pattern} should not match {message}");
    }
}

#[test]
fn terms_are_parts_of_the_message() {
    check("", &["", "anything"], &[]);
    check("  ", &["anything"], &[]);
    check("ERROR", &["[ERROR 400] BAD"], &["error", "WARN"]);
    check("ERROR REQUEST", &["ERROR in REQUEST", "REQUEST ERROR"], &["ERROR", "REQUEST"]);
    check("\"bad request\" x", &["x: bad request"], &["bad x request"]);
    check(r#""say \"hi\" \\ \n""#, &[r#"say "hi" \ \n"#], &["say hi"]);
    check("ERROR -EXIT", &["ERROR"], &["ERROR EXIT", "EXIT"]);
    check("-\"a b\"", &["ab"], &["a b"]);
    check("?ERROR ?WARN", &["ERROR", "a WARN"], &["INFO"]);
    check("?ERROR \"x y\"", &["x y"], &["ERROR"]);
    check("- ?", &["really - ?"], &["-", "?"]);
    check("%4[0-9]{2}% -x", &["code 404"], &["code 40", "x 404"]);
    check("%^START%", &["START 1"], &["a START"]);
    check("2024-01-01", &["on 2024-01-01"], &["2024"]);
    assert!(Pattern::parse(" ").unwrap().is_all());
}

#[test]
fn selectors_compare_properties() {
    let event = r#"{"level":"ERROR","ms":120.5,"user":{"ids":[1,22],"na.me":"bob"},"ok":true,"none":null,"ip":"123.123.0.1","n":"7"}
"#;
    let yes = [
        r#"{ $.level = "ERROR" }"#,
        "{$.level=ERROR}",
        r#"{ $.level = "ERR*" && $.ip = 123.123.* }"#,
        r#"{ $.level = * }"#,
        r#"{ $.user = "*" }"#,
        r#"{ $.ip = "1*3*.1" }"#,
        "{ $.level = %^ERR% }",
        "{ $.ms > 120 && $.ms >= 120.5 && $.ms < 1.21e2 && $.ms <= 120.5 }",
        "{ $.ms = 120.50 }",
        "{ $.user.ids[1] = 22 && $.user.ids[0] != 2 }",
        r#"{ $.user.["na.me"] = "bob" }"#,
        r#"{ $["level"] != "WARN" }"#,
        "{ $.ok IS TRUE && $.none is null && $.missing NOT EXISTS }",
        "{ ($.level = WARN || $.level = ERROR) && ($.ms > 1) }",
        "{ $.level = WARN && $.ms > 1000 || $.ok = true }",
        "{ $.n = 7 }",
        "{ $.user.ids[2] NOT EXISTS }",
        "  { $.ok IS TRUE }  ",
    ];
    for pattern in yes {
        check(pattern, &[event], &["", "plain", "{", "{}x"]);
    }
    for pattern in [
        r#"{ $.level = "error" }"#,
        "{ $.level != ERROR }",
        "{ $.missing != 1 }",
        "{ $.missing = * }",
        "{ $.level > 1 }",
        "{ $.none = * }",
        "{ $.none NOT EXISTS }",
        "{ $.ok IS FALSE }",
        "{ $.ip = *.2 }",
        "{ $.level = E*ERROR }",
        "{ $.level = WARN && $.ok IS TRUE }",
        "{ $.user = bob }",
        "{ $.n > 6 }",
    ] {
        check(pattern, &[], &[event]);
    }
}

#[test]
fn what_is_not_supported_says_so() {
    for (pattern, error) in [
        ("[ip, user]", "space-delimited filter patterns ([a, b, ...]) are not supported: use terms or a JSON selector"),
        ("a \"b", "the quoted text at character 3 does not end"),
        ("%a", "the regular expression at character 1 does not end"),
        ("%%", "the regular expression at character 1 is not supported: it is empty"),
        ("x %(a)%", "the regular expression at character 3 is not supported: '(' is not supported"),
        ("%\\1%", "the regular expression at character 1 is not supported: \\1 is not supported"),
        ("%a\\%", "the regular expression at character 1 is not supported: it ends with a backslash"),
        ("{ $.a }", "expected =, !=, <, <=, >, >=, IS or NOT EXISTS at character 7"),
        ("{ $.a = 1", "expected &&, || or } at character 10"),
        ("{ $.a = 1 } x", "expected the end of the pattern at character 13"),
        ("{ a = 1 }", "expected a property such as $.level at character 3"),
        ("{ $ = 1 }", "expected a property such as $.level at character 4"),
        ("{ $. = 1 }", "expected a property name at character 5"),
        ("{ $.a[x] = 1 }", "expected an index at character 7"),
        ("{ $.a > b }", "expected a number at character 9"),
        ("{ $.a = }", "expected a value at character 9"),
        ("{ $.a IS 1 }", "expected NULL, TRUE or FALSE at character 10"),
        ("{ ($.a = 1 }", "expected ) at character 12"),
    ] {
        assert_eq!(Pattern::parse(pattern).unwrap_err().to_string(), error, "{pattern}");
    }
    assert_eq!(Pattern::parse(&"é".repeat(1025)).unwrap_err(), PatternError::TooLong);
    assert!(Pattern::parse(&"é".repeat(1024)).is_ok());
    let deep = format!("{{ {}$.a = 1{} }}", "(".repeat(40), ")".repeat(40));
    assert!(matches!(Pattern::parse(&deep), Err(PatternError::TooDeep { .. })));
    for huge in ["%a{999}{999}%", "%a*{999}%", "%\\w{9999}%"] {
        assert!(matches!(Pattern::parse(huge), Err(PatternError::Regex { .. })), "{huge}");
    }
}

proptest! {
    #[test]
    fn terms_agree_with_a_model(
        required in prop::collection::vec("[ab]{1,3}", 0..3),
        excluded in prop::collection::vec("[ab]{1,3}", 0..2),
        optional in prop::collection::vec("[ab]{1,3}", 0..3),
        message in "[ab ]{0,12}",
    ) {
        let signed = |sign: &str, terms: &[String]| terms.iter().map(|term| format!("{sign}\"{term}\"")).collect::<Vec<_>>();
        let pattern = [signed("", &required), signed("-", &excluded), signed("?", &optional)].concat().join(" ");
        let has = |term: &String| message.contains(term.as_str());
        let wanted = if required.is_empty() && excluded.is_empty() {
            optional.is_empty() || optional.iter().any(has)
        } else {
            required.iter().all(has) && !excluded.iter().any(has)
        };
        prop_assert_eq!(Pattern::parse(&pattern).unwrap().matches(&message), wanted);
    }

    #[test]
    fn comparisons_agree_with_numbers(value in -20..20i32, limit in -20..20i32) {
        let message = format!("{{\"a\":{value}}}");
        for (operator, wanted) in [
            ("=", value == limit), ("!=", value != limit), ("<", value < limit),
            ("<=", value <= limit), (">", value > limit), (">=", value >= limit),
        ] {
            prop_assert_eq!(Pattern::parse(&format!("{{ $.a {operator} {limit} }}")).unwrap().matches(&message), wanted);
        }
    }

    #[test]
    fn nothing_panics(
        pattern in prop_oneof!["\\PC{0,40}", "[{}()$.a\\[\\]\"=!<>&|%*\\\\ 10?-]{0,40}", "\\{ [$.a\\[\\]\"=&|%*() 1]{0,30}\\}"],
        message in "\\PC{0,40}",
    ) {
        if let Ok(pattern) = Pattern::parse(&pattern) {
            let _ = pattern.matches(&message);
            let _ = pattern.matches(r#"{"a":{"a":[1,"x"]}}"#);
        }
    }
}
