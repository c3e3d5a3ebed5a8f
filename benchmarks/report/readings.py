"""The hand-written parts of the report. They state no figure: those come from results alone."""

CONVENTIONS = """
Accuracies are in % of the test set, differences in points. Over several seeds a figure is the
mean, with the sample standard deviation in brackets; `[n]` marks one that has fewer seeds than
its table. {none} stands where nothing was measured. Guilt and marks are called proved at a
corrected p-value of at most {significance}. All methods and attackers share the backbone, and
Adam over cosine cycles. The *twin* is the same classifier without protection, trained for both
cycles; *finetuned*, and *defaults*, is protected between them, by the
defaults of the release that is named below.
"""

WEAKNESSES = """
Each sentence is made from the results below. An aim is *met* if the whole interval over seeds
lies within it, *missed* if the mean lies outside, and *not shown* between the two, which is also
where a single seed ends up. Removal misses its aim if any tampering that leaves a useful model
makes the tracer lose the traitor, of whatever kind. Known limits are what [the threat
model]({docs}threat-model.md) says the scheme cannot do.
"""

INTRODUCTIONS = {
    "accuracy": """
Decoded accuracy of a key holder. Differences are taken seed by seed; the interval is Student's
over seeds.
""",
    "outsiders": """
The outsider has the weights, the architecture, the owner's training inputs without labels, and n
labelled samples per class. Every attack is given its best setting *as the test set tells*, which
favours it. Layers are the activations that everything passes through: in a residual network those
between its blocks; linear probes look at all others, too. The best attack is the best within
each seed. What needs no model gets the same samples. Columns with an n are test accuracies in %.
""",
    "removals": """
A traitor holds a key and a personalised copy, and tampers with the copy, with samples that nobody
trained with. *Accuracy* is the traitor's own after it. Ours is then traced by its weights, and by
its answers as a service; *ownership* asks only whether it is our model. Every peer's model goes
through the same, and is looked at by its own detection. In the figure, a dark cell is a strong
proof.
""",
    "forgeries": """
Forgers make keys up, pool keys, invent models whose trace inputs suit a service that runs
something else, and change folders of evidence. *Stated* is what the library says of a coalition
of so many users at threshold t. Of the claims, *evidence* counts folders that could be written
and that `verify_evidence` accepts.
""",
    "comparison": """
The peers are published methods in Keras, in `benchmarks/peers/`, whose docstrings say where they
depart from the papers. Cost is process CPU time. Copies of ours count as named by the untouched
row of the removal suite.
""",
}

READINGS = {
    "weaknesses": """
A missed aim is a fact about these data sets, backbones and seeds; so is a met one. Attackers here
are those that we thought of: what they miss is not thereby safe. An aim that is within reach but
not shown needs more seeds before anybody should lean on it.
""",
    "accuracy": """
A defender may take the difference as the price of protection for these backbones, data and
schedules. The interval covers the choice of the seed and nothing else: all seeds share one test
set and one choice of training samples, so a difference smaller than what a few test samples make
is none, even with a narrow interval. Nor does it carry over to other schedules: a twin that goes
on gaining in its second cycle leaves a copy behind that is held to its teacher, the *classifier
after one cycle*. Who protects a classifier that has stopped gaining loses less. With few seeds
Student's interval is wide; that it contains zero does not show that nothing is lost. Where a peer
differs by much, its short schedule here may be the reason, and its paper's figures are for longer
ones.
""",
    "outsiders": """
Where the best attack comes near the decoded accuracy, whoever can label so many samples has the
model in all but name: protection then costs that person the labels, and nothing more. Where its
lead over the best attack without a model is small, the weights add little to what these samples
give anyway; on an easy data set that says more about the data than about the protection.
*Permuted only* is what a secret order of the classes does alone: the distance to it is what
confusion adds.

A defender may not conclude that a better attack does not exist: each figure is a lower bound on
what an outsider can get. On the other side, attacks on the model try far more settings than those
without, and the best of many, chosen on the test set, is too good by luck: a lead of a few test
samples is none.

Without labels, groups are not hidden, names are: where the oracle, which no outsider can reach,
does well, the confused labels of a class are easily found to belong together. Any side knowledge
that names groups then names inputs, and known class frequencies are such knowledge unless they
are about equal. A guessed numbering is right for some labels by luck, and of several guesses the
best is shown, so it scatters widely around chance; a figure somewhat above it shows no leak.

Hosting the model takes the weights away from all of these attacks but those that read answers.
""",
    "removals": """
A row counts against a tracer only if the copy is still worth stealing: a trace that is lost
together with the accuracy is no gain to the thief. Where one tracer fails and the other names the
traitor, the owner still has a case, if it can get at what that tracer needs: the weights, or
answers to the trace inputs.

A defender may not conclude that what is found here is found always. The traitor acts alone, and
does not look for trace inputs; coalitions, and thieves who recognise trace labels, are in
[tracing.md]({docs}tracing.md). A student or a new head that learns from answers need not carry
any mark of the weights. Ownership shows whose model it is, never who leaked it. Peers' p-values
are for one mark and are not corrected for users, of whom they know none; ours are corrected for
all users, so the columns can be compared by what is found, less by how small p is. The p-value of
weights is a bound, that of a service is exact.
""",
    "forgeries": """
A coalition within the stated bounds gains nothing from mixing its keys but being named; beyond
them it may stay unnamed, and with more members than the threshold it owns the scheme. That is
arithmetic, and the trials only show that the code does it.

A trace alone proves nothing about who made the model. Anybody can invent a model, choose inputs
that a service already answers as wanted, and commit to them: the statistics are then flawless and
the accusation false. What stands against it is the owner's signature, which a judge must know
from elsewhere, and commitments that are older than what is disputed: the last column says whether
evidence that was accepted bears such a date. Dates are the authority's own, so against an owner
who kept a log for the purpose there is no defence: who knows all keys and signs can frame anybody.
A defender may show evidence to whoever believes the owner about when inputs were committed and
what was found, and to nobody else.
""",
    "comparison": """
Only the cost of a further user, and that the classes need a key at all, set ours apart by kind:
the peers mark a model that works for whoever holds it, or lock it with one passport that, once
given away, can be folded into an ordinary model. A marked copy for every user is possible with
all of them, at the cost that the second table shows, and each copy is another file to serve.

A defender may not read the table as a ranking. Peers were made for another purpose, proof of
ownership, and have no users in their papers: that copies can be told apart is our extension.
Their marks may be stronger with their own schedules. Users' costs beyond those that were made are
multiplied, not measured. Ours are keys; a *personalised copy*, which is what a trace by weights
needs, must be exported for each user as well, and that is not in the table. A forged mark on a
model that never had one is accepted by every verifier that lets the claimant choose secrets after
seeing the model, unless dates or signatures are asked for; ours is no exception, which is why the
row has two figures. Ratios of inference on small networks are noisy, and are one run.
""",
}
