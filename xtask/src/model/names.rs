//! From the model's PascalCase names to Rust's.

/// `S3Bucket` → `s3_bucket`, `KMSKeyArn` → `kms_key_arn`, `Type` → `type_` (a Rust keyword).
pub fn snake(name: &str) -> String {
    // Two unit spellings that the general rule would tear apart.
    let name = name.replace("GiB", "Gib").replace("VCpu", "Vcpu");
    let letters: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (index, letter) in letters.iter().enumerate() {
        let after_small = index > 0 && !letters[index - 1].is_ascii_uppercase();
        let before_small = letters.get(index + 1).is_some_and(char::is_ascii_lowercase);
        if letter.is_ascii_uppercase() && index > 0 && (after_small || before_small) && !out.ends_with('_') {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    match out.as_str() {
        "type" | "match" | "enum" | "mod" | "ref" | "use" | "where" | "static" => format!("{out}_"),
        _ => out,
    }
}

/// `FunctionName` → `FUNCTION_NAME`.
pub fn constant(name: &str) -> String {
    snake(name).trim_end_matches('_').to_ascii_uppercase()
}

/// What serde's `rename_all = "PascalCase"` makes of a field, to know where an explicit rename is needed.
pub fn pascal(field: &str) -> String {
    let mut out = String::new();
    let mut upper = true;
    for letter in field.chars() {
        if letter == '_' {
            upper = true;
        } else if upper {
            out.push(letter.to_ascii_uppercase());
            upper = false;
        } else {
            out.push(letter);
        }
    }
    out
}
