//! What a node that does not run is to become, from what it has and what its peers say. Pure: no file, no socket.

use super::peers::Answer;

/// What is there on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// Nothing at all.
    Empty,
    /// An unfinished copy, or what one left: there was a cluster.
    Remains,
    /// The data of a standby.
    Standby,
    /// The data of a primary.
    Primary,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a new cluster.
    Initialise,
    /// Copy this peer.
    Clone(usize),
    /// Come back as a standby of this peer.
    Rejoin(usize),
    /// Start as the standby it is.
    AsStandby,
    /// Start read-write.
    AsPrimary,
    /// Ask again later.
    Wait(String),
}

/// The peers in the order of the list, and who we are.
pub(super) struct Question<'a> {
    pub(super) own: Own,
    pub(super) name: &'a str,
    pub(super) names: &'a [String],
    pub(super) answers: &'a [Answer],
    /// First of the list?
    pub(super) first: bool,
    /// A person says that no peer was promoted.
    pub(super) alone: bool,
}

/// Decides. Nothing is started read-write that a peer says was replaced, nor while most peers say nothing: PostgreSQL
/// would take writes, and readers would see what a promoted peer does not have.
pub(super) fn decide(question: &Question<'_>) -> Step {
    let primary = primary(question);
    match (question.own, primary) {
        (Own::Empty | Own::Remains, Some(primary)) => Step::Clone(primary),
        (Own::Standby | Own::Primary, Some(primary)) => Step::Rejoin(primary),
        (Own::Standby, None) => Step::AsStandby,
        (Own::Primary, None) => may_be_primary(question),
        (Own::Remains, None) => Step::Wait("it holds no complete data, and there is no primary to copy".into()),
        (Own::Empty, None) => may_initialise(question),
    }
}

/// The primary of the highest term. One whose own row names another leader was replaced.
fn primary(question: &Question<'_>) -> Option<usize> {
    let highest = highest_term(question.answers).map(|(term, _)| term);
    let leads = |index: &usize| match &question.answers[*index] {
        Answer::Is { in_recovery: false, term: Some((term, leader)) } => {
            Some(*term) == highest && *leader == question.names[*index]
        }
        Answer::Is { in_recovery: false, term: None } => highest.is_none(),
        _ => false,
    };
    let mut leading = (0..question.answers.len()).filter(leads);
    let found = leading.next();
    // two without a term: nobody knows which is the right one
    found.filter(|_| leading.next().is_none())
}

fn highest_term(answers: &[Answer]) -> Option<(i64, &str)> {
    let terms = answers.iter().filter_map(|answer| match answer {
        Answer::Is { term: Some((term, leader)), .. } => Some((*term, leader.as_str())),
        _ => None,
    });
    terms.max()
}

fn may_be_primary(question: &Question<'_>) -> Step {
    if let Some((term, leader)) = highest_term(question.answers)
        && leader != question.name
    {
        return Step::Wait(format!("{leader} is the primary of term {term} and does not answer"));
    }
    if let Some(other) = question.answers.iter().position(|a| matches!(a, Answer::Is { in_recovery: false, .. })) {
        return Step::Wait(format!(
            "{} is read-write too, and no term says which of us is the primary",
            question.names[other]
        ));
    }
    let heard = question.answers.iter().filter(|answer| matches!(answer, Answer::Is { .. })).count();
    let nodes = question.answers.len() + 1;
    if 2 * (heard + 1) > nodes || question.alone {
        return Step::AsPrimary;
    }
    let others = question.answers.len();
    Step::Wait(format!(
        "{heard} of {others} peers answer: one of the others may have been promoted (--alone starts it all the same)"
    ))
}

fn may_initialise(question: &Question<'_>) -> Step {
    if !question.first {
        return Step::Wait("there is no primary to copy".into());
    }
    match question.answers.iter().position(|answer| *answer != Answer::Silent) {
        None => Step::Initialise,
        Some(there) => {
            Step::Wait(format!("{} is there, so there is a cluster, but no primary to copy", question.names[there]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(in_recovery: bool, term: Option<(i64, &str)>) -> Answer {
        Answer::Is { in_recovery, term: term.map(|(term, leader)| (term, leader.to_owned())) }
    }

    /// n1 asks n2 and n3.
    fn step(own: Own, answers: &[Answer; 2]) -> Step {
        let names = ["n2".to_owned(), "n3".to_owned()];
        decide(&Question { own, name: "n1", names: &names, answers, first: true, alone: false })
    }

    fn waits(step: &Step) -> bool {
        matches!(step, Step::Wait(_))
    }

    #[test]
    fn the_first_makes_the_cluster_only_if_nobody_is_there() {
        assert_eq!(step(Own::Empty, &[Answer::Silent, Answer::Silent]), Step::Initialise);
        assert!(waits(&step(Own::Empty, &[Answer::Silent, is(true, None)])));
        assert!(waits(&step(Own::Empty, &[Answer::Silent, Answer::Unclear("57P03".into())])));
        assert!(waits(&step(Own::Remains, &[Answer::Silent, Answer::Silent])));
        let names = ["n1".to_owned()];
        let second = Question {
            own: Own::Empty,
            name: "n2",
            names: &names,
            answers: &[Answer::Silent],
            first: false,
            alone: true,
        };
        assert!(waits(&decide(&second)));
    }

    #[test]
    fn whoever_finds_a_primary_follows_it() {
        let there = [is(true, None), is(false, None)];
        assert_eq!(step(Own::Empty, &there), Step::Clone(1));
        assert_eq!(step(Own::Remains, &there), Step::Clone(1));
        assert_eq!(step(Own::Standby, &there), Step::Rejoin(1));
        assert_eq!(step(Own::Primary, &there), Step::Rejoin(1));
    }

    #[test]
    fn a_primary_that_was_replaced_is_not_followed() {
        let zombie = is(false, Some((1, "n2")));
        assert_eq!(step(Own::Primary, &[zombie.clone(), is(false, Some((2, "n3")))]), Step::Rejoin(1));
        // n3 says that it leads term 2, but it is no primary yet
        assert!(waits(&step(Own::Primary, &[zombie, is(true, Some((2, "n3")))])));
        // two that no term tells apart
        assert!(waits(&step(Own::Primary, &[is(false, None), is(false, None)])));
        // its row was copied from who was primary before it
        assert!(waits(&step(Own::Primary, &[is(false, Some((1, "n1"))), Answer::Silent])));
    }

    #[test]
    fn an_old_primary_starts_read_write_only_if_most_say_it_still_is_the_one() {
        assert_eq!(step(Own::Primary, &[is(true, Some((3, "n1"))), Answer::Silent]), Step::AsPrimary);
        assert_eq!(step(Own::Primary, &[is(true, None), is(true, None)]), Step::AsPrimary);
        assert!(waits(&step(Own::Primary, &[Answer::Silent, Answer::Silent])));
        assert!(waits(&step(Own::Primary, &[Answer::Unclear("28P01".into()), Answer::Silent])));
        assert!(waits(&step(Own::Primary, &[is(true, Some((3, "n1"))), is(true, Some((4, "n2")))])));
        let alone = Question { own: Own::Primary, name: "n1", names: &[], answers: &[], first: true, alone: false };
        assert_eq!(decide(&alone), Step::AsPrimary);
    }

    #[test]
    fn a_standby_goes_on_while_there_is_no_primary() {
        assert_eq!(step(Own::Standby, &[Answer::Silent, Answer::Silent]), Step::AsStandby);
    }
}
