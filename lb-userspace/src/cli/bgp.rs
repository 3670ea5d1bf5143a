//! `lbctl bgp`.

use super::table::{Align::Left, printable, table};
use crate::control::bgp::BgpView;
use std::fmt::Write as _;

pub const BGP_EXAMPLES: &str = "\
Examples:
  lbctl bgp                 which addresses the routers learn from this node, and why not the others
  lbctl -o json bgp | jq -r '.addresses[] | select(.announced | not) | .address'";

pub fn render(view: &BgpView) -> String {
    let Some(number) = view.table else { return "no [bgp] in the configuration\n".to_owned() };
    let mut text = format!("routing table {number}\n");
    text += &table(
        [("ADDRESS", Left), ("ANNOUNCED", Left), ("WHY", Left)],
        view.addresses.iter().map(|it| {
            let announced = if it.announced { "yes" } else { "no" };
            [it.address.to_string(), announced.to_owned(), it.reason.clone()]
        }),
    );
    if let Some(error) = &view.error {
        let _ = writeln!(text, "the table is not as it should be: {}", printable(error));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::bgp::AnnouncedView;

    #[test]
    fn what_an_operator_sees() {
        let it = |address: [u8; 4], announced, reason: &str| AnnouncedView {
            address: address.into(),
            announced,
            reason: reason.to_owned(),
        };
        let addresses = vec![
            it([192, 0, 2, 10], true, "every service on it is up"),
            it([192, 0, 2, 53], false, "dns is down"),
        ];
        let view = BgpView { table: Some(9750), addresses, error: Some("no permission".to_owned()) };
        let expected = "routing table 9750\nADDRESS ANNOUNCED WHY\n192.0.2.10 yes every service on it is up\n\
            192.0.2.53 no dns is down\nthe table is not as it should be: no permission\n";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&render(&view)), squeezed(expected));
        assert_eq!(render(&BgpView::default()), "no [bgp] in the configuration\n");
    }
}
