"""Wisconsin breast cancer: 569 fine-needle aspirates, 30 features, malignant or benign."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import pastille
from pastille.values import NumberColumn, TableEncoding


def splits() -> pastille.Splits:
    table = load_breast_cancer()
    malignant = (table.target == 0).astype(np.int64)
    rest, test = train_test_split(
        np.arange(len(malignant)), test_size=0.4, random_state=0, stratify=malignant
    )
    train, validation = train_test_split(rest, test_size=0.3, random_state=0, stratify=malignant[rest])
    mean, std = table.data[train].mean(axis=0), table.data[train].std(axis=0)
    features = ((table.data - mean) / std).astype(np.float32)  # (N, 30)

    def part(index: np.ndarray) -> pastille.Split:
        return pastille.Split(inputs=features[index], targets=malignant[index])

    columns = zip(map(str, table.feature_names), mean.tolist(), std.tolist(), strict=True)
    encoding = TableEncoding(columns=tuple(NumberColumn(name=n, mean=m, std=s) for n, m, s in columns))
    return pastille.Splits(
        train=part(train),
        validation=part(validation),
        test=part(test),
        preprocessing=pastille.Preprocessing(table=encoding),  # a server is sent rows, and does the same
    )
