"""Diabetes: 442 patients, ten measurements, progression one year later (Efron et al. 2004)."""

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import pastille
from pastille.values import NumberColumn, TableEncoding


def splits() -> pastille.Splits:
    table = load_diabetes(scaled=False)
    rest, test = train_test_split(np.arange(len(table.data)), test_size=0.35, random_state=0)
    train, validation = train_test_split(rest, test_size=0.3, random_state=0)
    mean, std = table.data[train].mean(axis=0), table.data[train].std(axis=0)
    features = ((table.data - mean) / std).astype(np.float32)  # (N, 10)
    age, sex = table.data[:, 0], table.data[:, 1]
    groups = {
        "sex": np.where(sex == 1, "sex 1", "sex 2"),  # the publication does not say which is which
        "age_band": np.select([age < 45, age < 60], ["<45", "45-59"], default=">=60"),
    }

    def part(index: np.ndarray) -> pastille.Split:
        return pastille.Split(
            inputs=features[index],
            targets=table.target[index],
            groups={name: column[index] for name, column in groups.items()},
        )

    columns = zip(map(str, table.feature_names), mean.tolist(), std.tolist(), strict=True)
    encoding = TableEncoding(columns=tuple(NumberColumn(name=n, mean=m, std=s) for n, m, s in columns))
    return pastille.Splits(
        train=part(train),
        validation=part(validation),
        test=part(test),
        preprocessing=pastille.Preprocessing(table=encoding),  # a server is sent rows, and does the same
    )
